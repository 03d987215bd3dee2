// The networks, in a thread of their own. Its name is the way to compute: webgpu or wasm.
//
// A message is {number, action, values}; the answer has the same number, and a result or an error.

import { blend } from './blend.js';

// The runtime with WebGPU is twice as large, so that each way has its own.
const RUNTIMES = {
  webgpu: './runtime/ort.webgpu.bundle.min.mjs',
  wasm: './runtime/ort.wasm.bundle.min.mjs',
};
const TRIAL = { width: 128, height: 96, runs: 2 };

const canvas = new OffscreenCanvas(1, 1);
const context = canvas.getContext('2d', { alpha: false, willReadFrequently: true });
const models = new Map(); // promises of files
let ort;
let session;
let opened = '';

const actions = {
  /** Prepares a style. */
  async open({ style }) {
    if (opened === style) return;
    ort ??= await import(RUNTIMES[self.name]);
    ort.env.logLevel = 'error';
    const model = await load(style);
    opened = '';
    await session?.release();
    session = await ort.InferenceSession.create(model, {
      executionProviders: [self.name], logSeverityLevel: 3,
    });
    opened = style;
  },

  /** Paints a small frame some times: the pixels of its picture, and the best time a pixel. */
  async time() {
    const { width, height, runs } = TRIAL;
    const frame = Uint8Array.from({ length: width * height * 3 }, (_, at) => (at * 31) % 256);
    const picture = await run(frame, width, height); // prepares what is used for the first time
    let best = Infinity;
    for (let turn = 0; turn < runs; turn += 1) {
      const begun = performance.now();
      await run(frame, width, height);
      best = Math.min(best, performance.now() - begun);
    }
    return { picture, msPerPixel: best / (width * height) };
  },

  /** Paints a frame, an ImageBitmap. Durations are in ms. */
  async paint({ frame, style, strength, preserveColors }) {
    await actions.open({ style });
    const begun = performance.now();
    const { width, height } = frame;
    [canvas.width, canvas.height] = [width, height];
    context.drawImage(frame, 0, 0);
    frame.close();
    const { data } = context.getImageData(0, 0, width, height);
    const rgb = withoutAlpha(data);
    const read = performance.now();
    const stylized = await run(rgb, width, height);
    const painted = performance.now();
    const mixed = blend(data, stylized, strength, preserveColors);
    context.putImageData(new ImageData(mixed, width, height), 0, 0);
    const picture = canvas.transferToImageBitmap();
    return {
      picture,
      timings: {
        'Read': read - begun, 'Paint': painted - read, 'Mix': performance.now() - painted,
      },
    };
  },

  /** Begins to load all styles, so that they can be chosen without a network later. */
  keep({ styles }) {
    loadAll(styles);
  },
};

async function run(rgb, width, height) {
  const frames = new ort.Tensor('uint8', rgb, [1, height, width, 3]);
  const { pictures } = await session.run({ frames });
  return pictures.data;
}

function withoutAlpha(rgba) {
  const rgb = new Uint8Array((rgba.length / 4) * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    [rgb[to], rgb[to + 1], rgb[to + 2]] = [rgba[from], rgba[from + 1], rgba[from + 2]];
  }
  return rgb;
}

function load(style) {
  if (!models.has(style)) {
    const model = download(style);
    model.catch(() => models.delete(style));
    models.set(style, model);
  }
  return models.get(style);
}

async function loadAll(styles) {
  for (const style of styles) {
    await load(style).catch(() => {}); // tried again when it is chosen
  }
}

async function download(style) {
  const answer = await fetch(`models/${encodeURIComponent(style)}.onnx`);
  if (!answer.ok) throw new Error(`the style ${style} is not there`);
  return new Uint8Array(await answer.arrayBuffer());
}

let last = Promise.resolve();
addEventListener('message', ({ data: { number, action, values } }) => {
  last = last.then(async () => {
    try {
      const result = await actions[action](values);
      postMessage({ number, result }, result?.timings ? [result.picture] : []);
    } catch (error) {
      postMessage({ number, error: error.message ?? String(error) });
    }
  });
});
