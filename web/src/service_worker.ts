/// <reference lib="webworker" />
// Makes the page work offline, and gives the headers that threads need where the host does not.

const worker = self as unknown as ServiceWorkerGlobalScope;
declare const __SHELL__: string[];
declare const __VERSION__: string;

const SHELL = `shell ${__VERSION__}`; // the page
const LASTING = "models"; // files whose names change with their content

worker.addEventListener("install", (event) => {
  event.waitUntil(caches.open(SHELL).then((cache) => cache.addAll(__SHELL__)));
  void worker.skipWaiting();
});

worker.addEventListener("activate", (event) => {
  const old = async (): Promise<void> => {
    for (const name of await caches.keys()) if (name !== SHELL && name !== LASTING) await caches.delete(name);
    await worker.clients.claim();
  };
  event.waitUntil(old());
});

worker.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && new URL(request.url).origin === worker.location.origin) event.respondWith(answer(request));
});

/** Answers from the network what may have changed, the rest from the cache, which keeps what it lacks. */
async function answer(request: Request): Promise<Response> {
  const changes = request.mode === "navigate" || request.url.endsWith("/models.json");
  const kept = await caches.match(request, { ignoreSearch: true, ignoreVary: true });
  if (kept && !changes) return isolated(kept);
  const fresh = await fetch(request).catch(() => undefined);
  if (fresh?.status === 200) {
    const cache = await caches.open(changes ? SHELL : LASTING);
    await cache.put(request.url.split(/[?#]/)[0]!, fresh.clone());
  }
  return isolated(fresh ?? kept ?? Response.error());
}

function isolated(response: Response): Response {
  if (!response.status) return response;
  const headers = new Headers(response.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
