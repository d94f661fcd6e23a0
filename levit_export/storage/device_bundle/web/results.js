// What this browser measured, as the file that `levit-export check BUNDLE --results FILE` judges.
// The schema is in levit-export's docs/bundle-format.md.

const WARM_UP = 5;
const WARM = 50;
const WARM_S = 1;

/** The golden inputs through the model, timed by regime; the text of a results file. */
export async function measure({ bundle, model, artifact, runtime, golden, coldMs, firstMs, sustainS = 0, unit = "wasm", threads = 1 }) {
  const parts = {};
  for (let start = 0; start < golden.length; start += model.batch) {
    const piece = golden.slice(start, start + model.batch);
    for (const [name, { width, data, type }] of Object.entries(await model.run(piece))) {
      if (type !== "float32") throw new Error(`The output ${name} is ${type}, not float32.`);
      parts[name] ??= { width, data: new Float32Array(golden.length * width) };
      parts[name].data.set(data.subarray(0, piece.length * width), start * width);
    }
  }
  const outputs = {};
  for (const [name, { width, data }] of Object.entries(parts)) {
    outputs[name] = { shape: [golden.length, width], float32: base64(data) };
  }
  const call = () => model.run([golden[0]]);
  for (let run = 0; run < WARM_UP; run++) await call();
  const latency = {
    batch: model.batch,
    threads,
    cold_s: coldMs / 1000,
    first_s: firstMs / 1000,
    warm_s: await timed(call, (count, elapsed) => count < WARM || elapsed < WARM_S),
    sustained_s: await timed(call, (_, elapsed) => elapsed < sustainS),
  };
  return encode({
    format: "levit-export results",
    schema: 1,
    bundle: await bundle.hash(),
    program: "web page",
    device: "browser",
    system: navigator.userAgent.slice(0, 400),
    rows: [{ artifact: artifact.path, runtime, unit, error: "", outputs, latency }],
  });
}

/** Seconds of calls in a row, for as long as `wanted(calls, seconds since the start)`.
 *
 * Browsers round their clock, some to 1 ms, so that calls which took no time by it are counted
 * together with the next one and share its time.
 */
async function timed(call, wanted) {
  const seconds = [];
  const start = performance.now();
  let before = start;
  let pending = 0;
  while (pending || wanted(seconds.length, (performance.now() - start) / 1000)) {
    await call();
    pending += 1;
    const now = performance.now();
    if (now <= before) continue;
    for (let each = 0; each < pending; each++) seconds.push((now - before) / 1000 / pending);
    [before, pending] = [now, 0];
    await new Promise((resolve) => setTimeout(resolve, 0)); // the browser draws meanwhile
    before = performance.now();
  }
  return seconds;
}

function base64(numbers) {
  const view = new DataView(new ArrayBuffer(4 * numbers.length));
  numbers.forEach((number, place) => view.setFloat32(4 * place, number, true));
  let text = "";
  for (const byte of new Uint8Array(view.buffer)) text += String.fromCharCode(byte);
  return btoa(text);
}

/** JSON whose last member is the CRC-32 of all bytes before it. */
function encode(content) {
  const body = JSON.stringify(content, null, 1).slice(0, -2); // without the last line, a brace
  const checksum = crc32(new TextEncoder().encode(body)).toString(16).padStart(8, "0");
  return `${body},\n"crc32": "${checksum}"\n}\n`;
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc >>> 0;
}
