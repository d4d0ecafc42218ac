const assert = require('assert');
const childProcess = require('child_process');
const crypto = require('crypto');
const fs = require('fs');
const os = require('os');
const path = require('path');
const vm = require('vm');
const zlib = require('zlib');
const { Worker, isMainThread, parentPort } = require('worker_threads');

// (module (func (export "add") (param i32 i32) (result i32) local.get 0 local.get 1 i32.add))
const ADD = Uint8Array.of(
  0, 97, 115, 109, 1, 0, 0, 0, 1, 7, 1, 96, 2, 127, 127, 1, 127, 3, 2, 1, 0, 7, 7, 1, 3, 97, 100,
  100, 0, 0, 10, 9, 1, 7, 0, 32, 0, 32, 1, 106, 11);

async function main() {
  const { instance } = await WebAssembly.instantiate(ADD);
  let sum = 0;
  for (let i = 0; i < 1e6; i++) sum = instance.exports.add(sum, i);
  let other = 0;
  for (let i = 0; i < 1e7; i++) other += i % 7;
  const answer = await new Promise((resolve, reject) => {
    const worker = new Worker(__filename);
    worker.on('message', resolve);
    worker.on('error', reject);
  });
  assert.strictEqual(answer, 'worker');
  assert.strictEqual((await import('./lib/module.mjs')).value, 42);
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'work-'));
  const data = path.join(folder, 'data.json');
  fs.writeFileSync(data, '{"a": 1}');
  assert.strictEqual(JSON.parse(fs.readFileSync(data)).a, 1);
  await fs.promises.readFile(data);
  for await (const chunk of fs.createReadStream(data)) assert(chunk.length > 0);
  fs.rmSync(folder, { recursive: true });
  assert.strictEqual(zlib.gunzipSync(zlib.gzipSync('a')).toString(), 'a');
  crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
  assert.strictEqual(vm.runInNewContext('1 + 1'), 2);
  const said = childProcess.execSync('while read -r line; do echo "$line"; done < /etc/passwd | head -1; node -p 1+1');
  console.log(sum, other, said.toString());
  childProcess.fork(path.join(__dirname, 'lib/greeting.js'));
}

if (isMainThread) main();
else parentPort.postMessage('worker');
