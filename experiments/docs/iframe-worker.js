// Search in pages that are opened from a disk: browsers refuse workers there, so that the search's
// runs in a hidden frame. It asks for `parent.IFrameWorker`.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const page = (this.page = frame.contentWindow)
      page.document.open()
      page.document.write("<html><body></body></html>")
      page.document.close()
      page.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.ready = new Promise(resolve => {
        const script = page.document.createElement("script")
        script.src = url
        script.onload = resolve
        page.document.body.appendChild(script)
      })
    }
    postMessage(data) {
      this.ready.then(() => this.page.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {}
  }
  window.Worker = window.IFrameWorker
}
