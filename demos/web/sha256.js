// SHA-256, for pages that came without https: browsers keep their own from those.

const primes = [];
for (let number = 2; primes.length < 64; number++) if (primes.every((prime) => number % prime)) primes.push(number);
const fraction = (number) => ((number - Math.floor(number)) * 2 ** 32) | 0;
const START = primes.slice(0, 8).map((prime) => fraction(Math.sqrt(prime)));
const ROUND = primes.map((prime) => fraction(Math.cbrt(prime)));

const turn = (word, by) => (word >>> by) | (word << (32 - by));

/** The hash of some bytes, in hexadecimal digits (FIPS 180-4). */
export function sha256(bytes) {
  const tail = new Uint8Array(bytes.length % 64 < 56 ? 64 : 128), start = bytes.length - (bytes.length % 64);
  tail.set(bytes.subarray(start));
  tail[bytes.length % 64] = 0x80;
  const end = new DataView(tail.buffer);
  end.setUint32(tail.length - 8, Math.floor(bytes.length / 2 ** 29));
  end.setUint32(tail.length - 4, (bytes.length << 3) >>> 0);
  const state = Int32Array.from(START), words = new Int32Array(64);
  const take = (view, place) => {
    for (let i = 0; i < 16; i++) words[i] = view.getInt32(place + 4 * i);
    for (let i = 16; i < 64; i++) {
      const early = words[i - 15], late = words[i - 2];
      const first = turn(early, 7) ^ turn(early, 18) ^ (early >>> 3), second = turn(late, 17) ^ turn(late, 19) ^ (late >>> 10);
      words[i] = words[i - 16] + first + words[i - 7] + second;
    }
    let [a, b, c, d, e, f, g, h] = state;
    for (let i = 0; i < 64; i++) {
      const one = (h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + ROUND[i] + words[i]) | 0;
      const two = ((turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + two) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((word, i) => { state[i] += word; });
  };
  const whole = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let place = 0; place < start; place += 64) take(whole, place);
  for (let place = 0; place < tail.length; place += 64) take(end, place);
  return [...state].map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}
