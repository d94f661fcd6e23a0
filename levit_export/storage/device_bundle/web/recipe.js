// From pixels to the model's input, as Pillow and PyTorch do it: to the last bit.
//
// drawImage() resizes otherwise in each browser, so pixels are resampled here. Pillow's method:
// output pixel i is the sum of k_ij * pixel j, with k_ij = f((j - c_i + 1/2) / s) / their sum,
// c_i = (i + 1/2) * input / output and s = max(input / output, 1); columns first, then rows.
// Weights are rounded to 22 binary places and each pass to 8 bits, so that integers do the rest.

const PLACES = 22;
const HALF = 1 << (PLACES - 1);

const FILTERS = {
  box: { radius: 0.5, at: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { radius: 1, at: (x) => Math.max(0, 1 - Math.abs(x)) },
  hamming: { radius: 1, at: (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0) },
  bicubic: { radius: 2, at: (x) => cubic(Math.abs(x)) },
  lanczos: { radius: 3, at: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

/** Keys' cubic with a = -1/2. */
function cubic(x) {
  const a = -0.5;
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/** For each output pixel the first input pixel that counts, and the whole-number weights. */
function taps(input, output, filter) {
  const scale = input / output;
  const stretch = Math.max(scale, 1);
  const support = filter.radius * stretch;
  return Array.from({ length: output }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(input, Math.trunc(centre + support + 0.5));
    const weights = new Float64Array(end - first);
    let sum = 0;
    for (let tap = 0; tap < weights.length; tap++) {
      weights[tap] = filter.at((tap + first - centre + 0.5) / stretch);
      sum += weights[tap];
    }
    const whole = Int32Array.from(weights, (weight) => {
      const large = (weight / sum) * 2 ** PLACES;
      return Math.trunc(large < 0 ? large - 0.5 : large + 0.5);
    });
    return { first, weights: whole };
  });
}

/**
 * One pass over `lines` lines of pixels. In and out, a line's neighbours are `line` numbers apart
 * and a pixel's `step` numbers.
 */
function pass(source, from, target, to, lines, channels, every) {
  for (let line = 0; line < lines; line++) {
    for (let place = 0; place < every.length; place++) {
      const { first, weights } = every[place];
      for (let channel = 0; channel < channels; channel++) {
        let sum = HALF;
        let index = line * from.line + first * from.step + channel;
        for (let tap = 0; tap < weights.length; tap++, index += from.step) {
          sum += source[index] * weights[tap];
        }
        // A clamped array would round; >> takes the floor, as Pillow does.
        target[line * to.line + place * to.step + channel] = Math.min(255, Math.max(0, sum >> PLACES));
      }
    }
  }
}

/** An RGB image {width, height, data} at another size. */
export function resize(image, width, height, interpolation) {
  if (interpolation === "nearest") return picked(image, width, height);
  const filter = FILTERS[interpolation];
  let { data } = image;
  if (width !== image.width) {
    const target = new Uint8Array(width * image.height * 3);
    const every = taps(image.width, width, filter);
    pass(data, { line: image.width * 3, step: 3 }, target, { line: width * 3, step: 3 }, image.height, 3, every);
    data = target;
  }
  if (height !== image.height) {
    const target = new Uint8Array(width * height * 3);
    const every = taps(image.height, height, filter);
    const along = { line: 3, step: width * 3 };
    pass(data, along, target, along, width, 3, every);
    data = target;
  }
  return { width, height, data };
}

/** Python's round(): a half goes to the even number. */
function halfToEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 === 0 ? below : below + 1;
}

/** For each output pixel the nearest input pixel; steps are summed up, as Pillow does it. */
function nearest(input, output) {
  const step = input / output;
  let at = step / 2;
  return Array.from({ length: output }, () => {
    const place = Math.floor(at);
    at += step;
    return place;
  });
}

function picked(image, width, height) {
  const [rows, columns] = [nearest(image.height, height), nearest(image.width, width)];
  const data = new Uint8Array(width * height * 3);
  let to = 0;
  for (const row of rows) {
    for (const column of columns) {
      const from = (row * image.width + column) * 3;
      for (let channel = 0; channel < 3; channel++) data[to++] = image.data[from + channel];
    }
  }
  return { width, height, data };
}

/** What an image is resized to: [height, width]. */
function resizedSize(recipe, height, width) {
  const [high, wide] = recipe.resize;
  if (recipe.resize_mode === "none") return [height, width];
  if (recipe.resize_mode === "exact") return [high, wide];
  if (recipe.resize_mode === "shorter-side") {
    const short = Math.min(height, width);
    return [Math.trunc((high * height) / short), Math.trunc((high * width) / short)];
  }
  const ratios = [height / high, width / wide];
  const ratio = recipe.resize_mode === "fit" ? Math.max(...ratios) : Math.min(...ratios);
  return [halfToEven(height / ratio), halfToEven(width / ratio)];
}

/** Where the crop starts along a side; negative where it reaches beyond the image. */
function cropOffset(recipe, side, cut) {
  const half = (side - cut) / 2;
  if (recipe.centre === "floored") return Math.floor(half);
  return recipe.centre === "rounded" && half > 0 ? halfToEven(half) : Math.trunc(half);
}

/** What the recipe sees of an RGB image: {width, height, data} of the model's size. */
export function resizeAndCrop(recipe, image) {
  const [height, width] = resizedSize(recipe, image.height, image.width);
  if (!height || !width) throw new Error("This image is too long a strip to be resized.");
  const resized = resize(image, width, height, recipe.interpolation);
  const [high, wide] = recipe.crop;
  const [top, left] = [cropOffset(recipe, height, high), cropOffset(recipe, width, wide)];
  return crop(resized, { left, top, width: wide, height: high }, recipe.fill);
}

/** The pixels of a rectangle; those outside the image are `fill`. */
function crop(image, { left, top, width, height }, fill) {
  const data = new Uint8Array(width * height * 3);
  for (let to = 0; to < data.length; to += 3) data.set(fill, to);
  const [from, end] = [Math.max(left, 0), Math.min(left + width, image.width)];
  if (end <= from) return { width, height, data };
  for (let row = Math.max(top, 0); row < Math.min(top + height, image.height); row++) {
    const start = (row * image.width + from) * 3;
    const pixels = image.data.subarray(start, start + (end - from) * 3);
    data.set(pixels, ((row - top) * width + from - left) * 3);
  }
  return { width, height, data };
}

/**
 * The model's input without its batch: (p / 255 - mean) / std in float64, rounded once, NCHW.
 *
 * A model with a uint8 input normalises by itself and takes the pixels as they are.
 */
export function feed(recipe, spec, cropped) {
  const isRaw = spec.dtype === "uint8";
  if (isRaw && spec.shape.at(-1) === 3) return cropped.data;
  const size = cropped.width * cropped.height;
  const planes = isRaw ? new Uint8Array(3 * size) : new Float32Array(3 * size);
  for (let channel = 0; channel < 3; channel++) {
    const mean = recipe.mean[channel];
    const std = recipe.std[channel];
    for (let place = 0; place < size; place++) {
      const value = cropped.data[place * 3 + channel];
      planes[channel * size + place] = isRaw ? value : (value / 255 - mean) / std;
    }
  }
  return planes;
}
