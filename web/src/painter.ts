// The worker as the page sees it: a job is a promise, with progress and an end before its time.

import type { Answer, Jobs } from "./worker";

export type Watch = (done: number, all: number, what: string) => void;

export class Cancelled extends Error {}

interface Waiting {
  resolve(result: never): void;
  reject(error: Error): void;
  watch: Watch;
}

const worker = new Worker(new URL("./worker.ts", import.meta.url), { type: "module" });
const waiting = new Map<number, Waiting>();
let count = 0;

worker.onmessage = ({ data }: MessageEvent<Answer>) => {
  const job = waiting.get(data.id);
  if (!job) return;
  if ("progress" in data) {
    job.watch(...data.progress);
    return;
  }
  waiting.delete(data.id);
  if ("result" in data) job.resolve(data.result as never);
  else job.reject(data.cancelled ? new Cancelled() : new Error(data.error));
};

worker.onerror = () => {
  for (const job of waiting.values()) job.reject(new Error("The painter has stopped: reload the page."));
  waiting.clear();
};

/** Does a job in the worker. */
export function run<N extends keyof Jobs>(
  job: N,
  options: Parameters<Jobs[N]>[0],
  { watch = () => {}, signal, transfer = [] }: { watch?: Watch; signal?: AbortSignal; transfer?: Transferable[] } = {},
): Promise<ReturnType<Jobs[N]>> {
  const id = ++count;
  signal?.addEventListener("abort", () => worker.postMessage({ id, cancel: true }));
  return new Promise((resolve, reject) => {
    waiting.set(id, { resolve, reject, watch });
    worker.postMessage({ id, job, options }, transfer);
  });
}
