const http = require('http');
const { greeting } = require('./lib/greeting');
const dependency = require('dependency');

const server = http.createServer((request, response) => response.end(greeting(request.url) + dependency.name));
server.listen(8000, '127.0.0.1');
process.on('SIGTERM', () => process.exit(0));
