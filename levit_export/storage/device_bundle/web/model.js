// The ONNX file in ONNX Runtime Web: on the CPU by WebAssembly, or on the GPU by WebGPU.

/** The runtime's module for each unit; a bundle may be without the one for GPUs. */
export const MODULES = { wasm: "ort.wasm.bundle.min.mjs", webgpu: "ort.webgpu.bundle.min.mjs" };

/** Threads need memory that is shared, which a page has only where its server says so. */
export const THREADS = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;

/** "" where this browser lends the page a GPU, or why not. */
export async function withoutGpu() {
  if (!navigator.gpu) return "this browser has no WebGPU";
  const adapter = await navigator.gpu.requestAdapter().catch(() => null);
  return adapter ? "" : "WebGPU finds no GPU here";
}

const loaded = {};

/** The runtime for a unit, loaded once. */
function runtime(unit) {
  loaded[unit] ??= import(`./onnxruntime/${MODULES[unit]}`).then((ort) => {
    ort.env.wasm.numThreads = THREADS;
    ort.env.logLevel = "error";
    return ort;
  });
  return loaded[unit];
}

const WARMUP = 2;
const RUNS = 15;
const LEAST_RUNS = 5;
const PATIENCE_MS = 3000;

/** Let the browser draw: a run keeps the page's only thread. */
export const breathe = () => new Promise((resolve) => setTimeout(resolve, 0));

export class Model {
  constructor(ort, session, manifest, unit) {
    const [input] = manifest.signature.inputs;
    Object.assign(this, { ort, session, input, unit, names: manifest.signature.outputs.map((o) => o.name) });
    this.runtime = `onnxruntime-web ${ort.env.versions.web}`;
    this.batch = input.shape[0] ?? 1;
    this.queue = Promise.resolve();
  }

  static async open(buffer, manifest, unit = "wasm") {
    const ort = await runtime(unit);
    const options = { executionProviders: [unit] };
    const session = await ort.InferenceSession.create(new Uint8Array(buffer), options);
    return new Model(ort, session, manifest, unit);
  }

  /** Where it runs, in words. */
  get place() {
    const threads = THREADS === 1 ? "one thread" : `${THREADS} threads`;
    return this.unit === "webgpu" ? "GPU" : `CPU, ${threads}`;
  }

  /** One run after the other: a session takes no second one meanwhile. */
  run(rows) {
    const done = this.queue.then(() => this.#run(rows));
    this.queue = done.catch(() => {});
    return done;
  }

  /** Outputs {name: {rows, data}} of the inputs, in the model's batch size, the last filled up. */
  async #run(rows) {
    const size = rows[0].length;
    const data = new rows[0].constructor(this.batch * size);
    for (let row = 0; row < this.batch; row++) data.set(rows[Math.min(row, rows.length - 1)], row * size);
    const tensor = new this.ort.Tensor(this.input.dtype, data, [this.batch, ...this.input.shape.slice(1)]);
    const outputs = await this.session.run({ [this.input.name]: tensor });
    const found = {};
    for (const [name, value] of Object.entries(outputs)) {
      found[name] = { width: value.size / this.batch, data: value.data, type: value.type };
    }
    tensor.dispose();
    return found;
  }

  /** Milliseconds of a run with this input, sorted. */
  async time(row) {
    for (let run = 0; run < WARMUP; run++) await this.run([row]);
    const found = [];
    const start = performance.now();
    while (found.length < RUNS && (found.length < LEAST_RUNS || performance.now() - start < PATIENCE_MS)) {
      await breathe();
      const before = performance.now();
      await this.run([row]);
      found.push(performance.now() - before);
    }
    return found.sort((one, other) => one - other);
  }

  close() {
    return this.queue.then(() => this.session.release());
  }
}

/** Class numbers by falling score with their probabilities; the lower number first when equal. */
export function ranked(outputs, classes) {
  const name = ["logits", "probabilities"].find((each) => each in outputs) ?? Object.keys(outputs)[0];
  const scores = Array.from(outputs[name].data.slice(0, classes));
  if (scores.length !== classes || !scores.every(Number.isFinite)) {
    throw new Error(`The output ${name} is not ${classes} finite numbers.`);
  }
  let shares = scores;
  if (name !== "probabilities") {
    const largest = Math.max(...scores);
    const powers = scores.map((score) => Math.exp(score - largest));
    const sum = powers.reduce((one, other) => one + other);
    shares = powers.map((power) => power / sum);
  }
  const order = scores.map((_, place) => place);
  order.sort((one, other) => scores[other] - scores[one] || one - other);
  return order.map((place) => ({ place, share: shares[place] }));
}
