// Pixels on their way to a model and back. Pictures are RGBA as a canvas has them, models take and give RGB.

export interface Picture {
  width: number;
  height: number;
  data: Uint8ClampedArray; // RGBA
}

/** Returns RGB of a picture that is no smaller than a side, its edges repeated around it. */
export function toModel(picture: Picture, least: number): { width: number; height: number; data: Uint8Array } {
  const { left, top, width, height } = padding(picture.width, picture.height, least);
  const data = new Uint8Array(width * height * 3);
  for (let y = 0, to = 0; y < height; y++) {
    const row = Math.min(Math.max(y - top, 0), picture.height - 1) * picture.width;
    for (let x = 0; x < width; x++, to += 3) {
      const from = (row + Math.min(Math.max(x - left, 0), picture.width - 1)) * 4;
      data[to] = picture.data[from]!;
      data[to + 1] = picture.data[from + 1]!;
      data[to + 2] = picture.data[from + 2]!;
    }
  }
  return { width, height, data };
}

/** Returns the size of a picture once no side is shorter than the least, and where the picture lies in it. */
export function padding(width: number, height: number, least: number) {
  const [columns, rows] = [Math.max(0, least - width), Math.max(0, least - height)];
  return { left: columns >> 1, top: rows >> 1, width: width + columns, height: height + rows };
}

/**
 * Replaces a picture's pixels by painted ones; its alpha stays.
 * @param painted RGB, of rows so many pixels long, in which the picture begins at left and top
 * @param mix 1: the painting; 0: the photograph; between as Pillow's `Image.blend` has it
 */
export function fromModel(
  picture: Picture,
  painted: ArrayLike<number>,
  { left, top, width }: { left: number; top: number; width: number },
  mix = 1,
): void {
  const { data } = picture;
  for (let y = 0, to = 0; y < picture.height; y++) {
    let from = ((y + top) * width + left) * 3;
    for (let x = 0; x < picture.width; x++, to += 4, from += 3) {
      for (let c = 0; c < 3; c++) {
        const [photograph, paint] = [data[to + c]!, painted[from + c]!];
        data[to + c] = mix === 1 ? paint : Math.trunc(photograph + mix * (paint - photograph));
      }
    }
  }
}

/** Adds a share of what another picture lost of a photograph to a painted one, in place: `add_lost` of stylizer.py. */
export function addLost(painted: Picture, photograph: Picture, back: Picture, share: number): void {
  for (let i = 0; i < painted.data.length; i++) {
    if ((i & 3) < 3) painted.data[i]! += share * (photograph.data[i]! - back.data[i]!);
  }
}

/** Lays a picture over white: a JPEG has no place for alpha. */
export function overWhite(data: Uint8ClampedArray): void {
  for (let i = 0; i < data.length; i += 4) {
    const alpha = data[i + 3]!;
    if (alpha === 255) continue;
    for (let c = 0; c < 3; c++) data[i + c] = 255 + ((data[i + c]! - 255) * alpha) / 255;
    data[i + 3] = 255;
  }
}

/** Returns width and height of a picture brought to at most so many pixels, never enlarged. */
export function fit(width: number, height: number, pixels: number): [number, number] {
  const scale = Math.min(1, Math.sqrt(pixels / (width * height)));
  return [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
}

/** Returns how many pixels a frame may have next, so that it takes about so many seconds; small changes are not worth it. */
export function steady(pixels: number, seconds: number, wanted: number, [least, most]: [number, number]): number {
  const next = Math.min(most, Math.max(least, (pixels * wanted) / seconds));
  return Math.abs(next / pixels - 1) < 0.25 ? pixels : next;
}
