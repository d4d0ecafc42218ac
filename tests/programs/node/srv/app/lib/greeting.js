exports.greeting = (path) => `hello ${path}\n`;
