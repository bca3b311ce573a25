// onnxruntime-web, and files that are loaded behind a progress bar.

import * as ort from "onnxruntime-web/wasm";
import loader from "onnxruntime-web/ort-wasm-simd-threaded.mjs?url";
import wasm from "onnxruntime-web/ort-wasm-simd-threaded.wasm?url";

export { ort };
export type Progress = (done: number, all: number) => void;

/** Returns a file's bytes and tells how many of about how many have come. */
export async function load(url: string, about: number, progress: Progress): Promise<Uint8Array<ArrayBuffer>> {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) throw new Error("A file of this page cannot be loaded. Are you offline? Reload the page.");
  const parts: Uint8Array[] = [];
  let done = 0;
  const reader = response.body!.getReader();
  for (let read = await reader.read(); !read.done; read = await reader.read()) {
    parts.push(read.value);
    done += read.value.length;
    progress(Math.min(done, about), about);
  }
  progress(about, about);
  const content = new Uint8Array(done);
  let at = 0;
  for (const part of parts) {
    content.set(part, at);
    at += part.length;
  }
  return content;
}

let started: Promise<void> | undefined;

/** Loads onnxruntime-web once. */
export function start(threads: number, progress: Progress): Promise<void> {
  return (started ??= (async () => {
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmPaths = { mjs: new URL(loader, self.location.href).href };
    ort.env.wasm.wasmBinary = (await load(wasm, __WASM_BYTES__, progress)).buffer;
  })().catch((error: unknown) => {
    started = undefined;
    throw error;
  }));
}
