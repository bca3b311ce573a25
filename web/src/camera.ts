// The camera as frames, and a canvas as a video file.

export class Camera {
  readonly video = document.createElement("video");
  private constructor(private stream: MediaStream) {
    Object.assign(this.video, { srcObject: stream, muted: true, playsInline: true });
  }

  /** Starts the camera; an error says in words why it does not. */
  static async start(): Promise<Camera> {
    if (!navigator.mediaDevices) throw new Error("This browser gives no camera to pages that are not on https.");
    const wanted = { video: { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } }, audio: false };
    const stream = await navigator.mediaDevices.getUserMedia(wanted).catch((error: DOMException) => {
      if (error.name === "NotAllowedError") throw new Error("The camera was refused: allow it in the browser's settings for this page.");
      if (error.name === "NotFoundError") throw new Error("No camera was found on this device.");
      throw new Error("The camera cannot be started: another program may have it.");
    });
    const camera = new Camera(stream);
    await camera.video.play();
    return camera;
  }

  /** Returns the picture of this moment, of about so many pixels. */
  frame(pixels = Infinity): Promise<ImageBitmap> {
    const { videoWidth: width, videoHeight: height } = this.video;
    const scale = Math.min(1, Math.sqrt(pixels / (width * height)));
    const [resizeWidth, resizeHeight] = [width, height].map((side) => Math.max(16, Math.round((side * scale) / 16) * 16));
    return scale < 1 ? createImageBitmap(this.video, { resizeWidth, resizeHeight }) : createImageBitmap(this.video);
  }

  stop(): void {
    for (const track of this.stream.getTracks()) track.stop();
  }
}

/** Records a canvas until it is stopped. */
export class Recording {
  private parts: Blob[] = [];
  private recorder: MediaRecorder;

  constructor(canvas: HTMLCanvasElement) {
    const types = ["video/webm;codecs=vp9", "video/webm", "video/mp4"];
    const mimeType = types.find((type) => globalThis.MediaRecorder?.isTypeSupported(type));
    if (!mimeType) throw new Error("This browser records no videos.");
    this.recorder = new MediaRecorder(canvas.captureStream(), { mimeType, videoBitsPerSecond: 5_000_000 });
    this.recorder.ondataavailable = ({ data }) => this.parts.push(data);
    this.recorder.start(1000);
  }

  stop(): Promise<Blob> {
    return new Promise((resolve) => {
      this.recorder.onstop = () => resolve(new Blob(this.parts, { type: this.recorder.mimeType.split(";")[0]! }));
      this.recorder.stop();
    });
  }
}
