import { describe, expect, it } from "vitest";
import type { Picture } from "../../src/pixels";
import { changeOf, restoreEdges, seenAt, shownStroke } from "../../src/stroke";

const picture = (width: number, height: number, value: (x: number, y: number, c: number) => number): Picture => {
  const data = new Uint8ClampedArray(width * height * 4);
  for (let i = 0; i < data.length; i++) data[i] = value((i >> 2) % width, Math.floor((i >> 2) / width), i & 3);
  return { width, height, data };
};

describe("a stroke", () => {
  it("is that of the whole picture as far as that can be shown", () => {
    expect(shownStroke(4, 100, 400)).toBe(2);
    expect(shownStroke(2, 100, 10_000)).toBe(1);
    expect(seenAt(101, 50, 2)).toEqual([51, 25]);
  });

  it("adds what a model changed to the luminance of the photograph", () => {
    // Where the change is the same everywhere, so is what is enlarged.
    const small = picture(4, 3, () => 100);
    const painted = picture(4, 3, (_x, _y, c) => [130, 100, 60, 255][c]!);
    const photograph = picture(8, 6, (x, y, c) => (c === 3 ? 77 : 10 * x + 5 * y + 20 * c));
    const rows = picture(8, 6, (x, y, c) => photograph.data[(y * 8 + x) * 4 + c]!);
    restoreEdges(rows, { top: 0, height: 6 }, changeOf(small, painted), [4, 3], 1);
    for (let i = 0; i < rows.data.length; i += 4) {
      const [red, green, blue] = photograph.data.slice(i, i + 3);
      const light = 0.299 * red! + 0.587 * green! + 0.114 * blue!;
      expect([...rows.data.slice(i, i + 4)]).toEqual([Math.round(light + 30), Math.round(light), Math.max(0, Math.round(light - 40)), 77]);
    }
  });

  it("is the same in strips, enlarges a ramp to a ramp, and is mixed with the photograph", () => {
    const small = picture(10, 10, () => 0);
    const change = changeOf(small, picture(10, 10, (x, y) => 10 * x + 4 * y));
    const whole = picture(30, 30, () => 0);
    restoreEdges(whole, { top: 0, height: 30 }, change, [10, 10], 1);
    const at = (x: number, y: number): number => 10 * ((x + 0.5) / 3 - 0.5) + 4 * ((y + 0.5) / 3 - 0.5);
    for (let y = 6; y < 24; y++) {
      for (let x = 6; x < 24; x++) expect(Math.abs(whole.data[(y * 30 + x) * 4]! - at(x, y))).toBeLessThan(0.51);
    }
    const strip = picture(30, 7, () => 0);
    restoreEdges(strip, { top: 12, height: 30 }, change, [10, 10], 1);
    expect([...strip.data]).toEqual([...whole.data.slice(12 * 120, 19 * 120)].map((value, i) => ((i & 3) === 3 ? 0 : value)));
    const half = picture(30, 30, () => 0);
    restoreEdges(half, { top: 0, height: 30 }, change, [10, 10], 0.5);
    expect(half.data[4 * (15 * 30 + 15)]).toBe(Math.trunc(whole.data[4 * (15 * 30 + 15)]! / 2));
  });
});
