// A browser starts no Worker from a file: page. There the search runs in a hidden frame instead,
// which loads its scripts as script elements. Over http this file does nothing.
(() => {
  if (location.protocol !== "file:") return;

  // What the search's script calls inside of the frame. It awaits importScripts, so a promise will do.
  const prelude = `
    postMessage = data => parent.postMessage({ frame: frameId, data }, "*");
    importScripts = (...urls) => urls.reduce((before, url) => before.then(() =>
      new Promise((done, failed) => {
        const script = document.createElement("script");
        Object.assign(script, { src: url, onload: done, onerror: failed });
        document.body.append(script);
      })), Promise.resolve());`;
  let count = 0;

  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const id = ++count;
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc =
        `<body><script>const frameId = ${id};${prelude}</scr` + `ipt><script src="${url}"></scr` + `ipt>`;
      this.loaded = new Promise(done => this.frame.addEventListener("load", done));
      this.heard = event => {
        if (event.source !== this.frame.contentWindow || event.data.frame !== id) return;
        this.dispatchEvent(new MessageEvent("message", { data: event.data.data }));
      };
      window.addEventListener("message", this.heard);
      document.body.append(this.frame);
    }
    postMessage(data) {
      this.loaded.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    set onmessage(listener) {
      this.addEventListener("message", listener);
    }
    terminate() {
      window.removeEventListener("message", this.heard);
      this.frame.remove();
    }
  };
})();
