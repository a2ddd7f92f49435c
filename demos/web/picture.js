// Pictures to what the network takes, number for number as Pillow's bicubic resize makes it of RGB.

const PRECISION = 22;

function bicubic(x) {
  const distance = Math.abs(x), a = -0.5;
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
  return 0;
}

/** For each place of a shorter or longer line: where what it is made of begins, and the weights, whole numbers. */
function weights(before, after) {
  const scale = before / after, wide = Math.max(scale, 1), support = 2 * wide;
  return Array.from({ length: after }, (_, index) => {
    const center = (index + 0.5) * scale;
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), before);
    const shares = Array.from({ length: end - start }, (_, x) => bicubic((x + start - center + 0.5) / wide));
    const sum = shares.reduce((total, share) => total + share, 0);
    const whole = shares.map((share) => {
      const large = (sum ? share / sum : share) * (1 << PRECISION);
      return Math.trunc(large < 0 ? large - 0.5 : large + 0.5);
    });
    return { start, whole };
  });
}

const clip = (value) => Math.min(Math.max(value >> PRECISION, 0), 255);

/** `samples`, three to a pixel, in another size. */
export function resize(samples, width, height, newWidth, newHeight) {
  if (width !== newWidth) {
    const line = weights(width, newWidth), wider = new Uint8Array(newWidth * height * 3);
    for (let y = 0; y < height; y++) for (let x = 0; x < newWidth; x++) for (let c = 0; c < 3; c++) {
      let sum = 1 << (PRECISION - 1);
      const { start, whole } = line[x];
      for (let k = 0; k < whole.length; k++) sum += samples[(y * width + start + k) * 3 + c] * whole[k];
      wider[(y * newWidth + x) * 3 + c] = clip(sum);
    }
    samples = wider;
  }
  if (height !== newHeight) {
    const line = weights(height, newHeight), higher = new Uint8Array(newWidth * newHeight * 3);
    for (let y = 0; y < newHeight; y++) for (let x = 0; x < newWidth; x++) for (let c = 0; c < 3; c++) {
      let sum = 1 << (PRECISION - 1);
      const { start, whole } = line[y];
      for (let k = 0; k < whole.length; k++) sum += samples[((start + k) * newWidth + x) * 3 + c] * whole[k];
      higher[(y * newWidth + x) * 3 + c] = clip(sum);
    }
    samples = higher;
  }
  return samples;
}

/** RGBA of a canvas to RGB on white. */
export function onWhite(rgba) {
  const samples = new Uint8Array((rgba.length / 4) * 3);
  for (let pixel = 0; pixel < rgba.length / 4; pixel++) {
    const alpha = rgba[pixel * 4 + 3];
    for (let c = 0; c < 3; c++) {
      samples[pixel * 3 + c] = Math.round((rgba[pixel * 4 + c] * alpha + 255 * (255 - alpha)) / 255);
    }
  }
  return samples;
}

/** `[3, height, width]`, normalized, as 32-bit numbers. */
export function toPixels(samples, width, height, settings) {
  const small = resize(samples, width, height, settings.width, settings.height);
  const size = settings.width * settings.height, pixels = new Float32Array(3 * size);
  for (let c = 0; c < 3; c++) {
    const mean = Math.fround(settings.mean[c]), std = Math.fround(settings.std[c]);
    for (let place = 0; place < size; place++) {
      const scaled = Math.fround(small[place * 3 + c] * settings.rescale_factor);
      pixels[c * size + place] = Math.fround(scaled - mean) / std;
    }
  }
  return pixels;
}
