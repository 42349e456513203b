/** The camera's dialog: shows its picture, and takes a photo as a file. */

const dialog = document.getElementById("camera");
const viewfinder = document.getElementById("viewfinder");
const takeButton = document.getElementById("take-photo");
const switchButton = document.getElementById("switch-camera");

const REASONS = {
  NotAllowedError:
    "The camera is not allowed. Allow it for this page in the browser's settings, and try again.",
  NotFoundError: "There is no camera on this device.",
  NotReadableError: "Another program is using the camera.",
};

let facingMode = "user";
let isWanted = false;

/** Whether the browser offers cameras to this page: only over HTTPS and on localhost. */
export const isSupported = Boolean(navigator.mediaDevices?.getUserMedia);

/**
 * Open the dialog, which closes when a photo is taken.
 *
 * @param {(photo: File) => void} onPhoto
 * @param {(reason: string) => void} onFailure gets the reason if there is no camera
 */
export async function open(onPhoto, onFailure) {
  dialog.showModal();
  takeButton.onclick = async () => {
    const photo = await capture();
    dialog.close();
    onPhoto(photo);
  };
  switchButton.onclick = () => {
    facingMode = facingMode === "user" ? "environment" : "user";
    start(onFailure);
  };
  await start(onFailure);
}

async function start(onFailure) {
  stop();
  isWanted = true;
  try {
    const stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode, width: { ideal: 1920 }, height: { ideal: 1080 } },
    });
    // The dialog may have been closed while the browser asked for permission.
    if (!isWanted) return stopTracks(stream);
    viewfinder.srcObject = stream;
    viewfinder.classList.toggle("is-mirror", facingMode === "user");
    await viewfinder.play();
    takeButton.disabled = false;
    takeButton.focus();
    const devices = await navigator.mediaDevices.enumerateDevices();
    switchButton.hidden = devices.filter(({ kind }) => kind === "videoinput").length < 2;
  } catch (error) {
    if (!isWanted) return;
    dialog.close();
    onFailure(REASONS[error.name] ?? `The camera did not start: ${error.message}`);
  }
}

function capture() {
  const canvas = document.createElement("canvas");
  canvas.width = viewfinder.videoWidth;
  canvas.height = viewfinder.videoHeight;
  canvas.getContext("2d").drawImage(viewfinder, 0, 0);
  const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
  return new Promise((resolve) => {
    canvas.toBlob(
      (blob) => resolve(new File([blob], `camera-${time}.jpg`, { type: "image/jpeg" })),
      "image/jpeg",
      0.92,
    );
  });
}

function stop() {
  isWanted = false;
  takeButton.disabled = true;
  if (viewfinder.srcObject) stopTracks(viewfinder.srcObject);
  viewfinder.srcObject = null;
}

function stopTracks(stream) {
  for (const track of stream.getTracks()) track.stop();
}

document.getElementById("close-camera").addEventListener("click", () => dialog.close());
// Also after Escape, and after a photo.
dialog.addEventListener("close", stop);
