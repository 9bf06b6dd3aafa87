"""Headless Chromium, driven over a pipe by the DevTools protocol."""

import base64
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import time

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Browser:
    """One page in a browser of its own.

    Args:
        folder: Where the browser keeps what it keeps.
    """

    def __init__(self, folder):
        self.messages, self._numbers, self._unread = [], itertools.count(1), b""
        theirs, self._to = os.pipe()
        self._from, back = os.pipe()

        def pipes():  # it reads from 3 and writes to 4
            high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, back)]
            for low, end in zip((3, 4), high, strict=True):
                os.dup2(end, low)

        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        command += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "--window-size=1100,1000", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=(3, 4), preexec_fn=pipes, **quiet)
        os.close(theirs)
        os.close(back)
        self._session = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method, **parameters):
        """Send a command and wait for its result; events on the way are kept in `messages`."""
        number = next(self._numbers)
        sent = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            sent["sessionId"] = self._session
        os.write(self._to, json.dumps(sent).encode() + b"\0")
        while True:
            message = self._read()
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.messages.append(message)

    def _read(self):
        while b"\0" not in self._unread:
            more = os.read(self._from, 2**16)
            assert more, "the browser has ended"
            self._unread += more
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script):
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, script):
        """Wait until an expression holds."""
        end = time.monotonic() + 30
        while not self.evaluate(f"Boolean({script})"):
            assert time.monotonic() < end, f"{script}: {self.evaluate('document.body.innerText')}"
            time.sleep(0.02)

    def press(self, key, code=None, text=None, modifiers=0):
        names = {
            "key": key,
            "code": code or key,
            "modifiers": modifiers,
            "windowsVirtualKeyCode": {"Tab": 9, "Enter": 13}.get(key, 0),
        }
        self.call("Input.dispatchKeyEvent", type="keyDown", **names, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **names)

    def write(self, text):
        self.call("Input.insertText", text=text)

    def choose(self, selector, *files):
        """Give files to an input of the page."""
        document = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=document, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def scheme(self, name):
        """Prefer a dark or a light page."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def screenshot(self, file):
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self):
        """What the console says: errors of scripts, what the policy has kept out."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded"}
        return [message for message in self.messages if message.get("method") in kinds]

    def close(self):
        self._session = None
        self.call("Browser.close")
        os.close(self._to)
        self._process.wait(20)
        os.close(self._from)
