"""Chromium as tests drive it: a JSON object a line comes in, one goes out.

{"do": "open", "url": "…"}  {"do": "run", "script": "return …"}  {"do": "look", "width": 360,
"height": 800, "scheme": "dark"}  {"do": "picture", "path": "….png"}  {"do": "log"}
"""

import base64
import json
import sys

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

# Before anything of a page runs: what it does against its policy, and what moves on it.
WITNESS = """
window.witness = { violations: [], errors: [], dialogs: 0, shifts: [] };
addEventListener('securitypolicyviolation', (event) =>
  witness.violations.push(event.violatedDirective + ' ' + event.blockedURI));
addEventListener('error', (event) => witness.errors.push(event.message || 'a part did not load'), true);
addEventListener('unhandledrejection', (event) => witness.errors.push(String(event.reason)));
window.alert = window.confirm = window.prompt = () => { witness.dialogs += 1; };
new PerformanceObserver((list) => witness.shifts.push(...list.getEntries().map((entry) => entry.value)))
  .observe({ type: 'layout-shift', buffered: true });
"""

ARGUMENTS = [
    "--headless=new",
    # It opens nothing but the page, and root has no sandbox.
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def start():
    options = webdriver.ChromeOptions()
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(service=Service("/usr/bin/chromedriver"), options=options)
    driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WITNESS})
    return driver


def look(driver, width, height, scheme):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def picture(driver, path):
    width, height = driver.execute_script(
        "return [innerWidth, document.documentElement.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
    )
    with open(path, "wb") as file:
        file.write(base64.b64decode(shot["data"]))


def log(driver):
    """What the console says, and the URLs that were asked for."""
    console = [entry["message"] for entry in driver.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return {"console": console, "urls": urls}


def main():
    driver = start()
    actions = {
        "open": driver.get,
        "run": driver.execute_script,
        "look": lambda **how: look(driver, **how),
        "picture": lambda path: picture(driver, path),
        "log": lambda: log(driver),
    }
    try:
        for line in sys.stdin:
            command = json.loads(line)
            value = actions[command.pop("do")](**command)
            print(json.dumps({"value": value}), flush=True)
    finally:
        driver.quit()


main()
