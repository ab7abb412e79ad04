//! Chromium, driven by WebDriver (W3C): the real browser, with an authenticator of software where a test asks for one.

use std::{fs, path::Path, process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nix::{
    sys::signal::{self, Signal},
    unistd::Pid,
};
use serde_json::{Value, json};

use crate::{Port, Process, eventually, http};

/// A browser that has not done in this time what it was told never will.
const PATIENCE: Duration = Duration::from_secs(60);
/// Key of an element's id in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window.
#[derive(Debug)]
pub struct Browser {
    driver: String,
    session: String,
    /// The browser itself: it would outlive its driver.
    browser: Pid,
    _process: Process,
    _port: Port,
}

impl Browser {
    /// A browser that keeps what it has in `dir`, and believes the certificates with this key alone: the SHA-256 of its
    /// SubjectPublicKeyInfo in base64.
    ///
    /// # Panics
    /// When Debian's packages `chromium` and `chromium-driver` are not installed.
    pub async fn start(dir: &Path, believed: &str) -> Self {
        let port = Port::lease();
        let mut command = Command::new("chromedriver");
        // Chromium leaves what it has in the folder for temporary files when it is killed.
        command.arg(format!("--port={}", port.number())).env("TMPDIR", dir);
        let mut process = Process::spawn("chromedriver", command, &dir.join("chromedriver.log"));
        let driver = port.address();
        eventually("chromedriver is there", PATIENCE, async || {
            process.assert_running();
            http::get(&driver, "/status").await
        })
        .await;
        let args = [
            "--headless=new".to_owned(),
            // Tests run as root in containers, where it has no sandbox.
            "--no-sandbox".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-gpu".to_owned(),
            "--no-proxy-server".to_owned(),
            "--window-size=1280,900".to_owned(),
            format!("--user-data-dir={}", dir.join("chromium").display()),
            format!("--ignore-certificate-errors-spki-list={believed}"),
        ];
        let capabilities = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": args },
            "goog:loggingPrefs": { "browser": "ALL" },
        }}});
        let (status, text) = http::ask(&driver, "POST", "/session", &capabilities.to_string()).await.unwrap();
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        let session = answer["value"]["sessionId"].as_str().unwrap().to_owned();
        let browser = answer["value"]["capabilities"]["goog:processID"].as_i64().unwrap();
        let browser = Pid::from_raw(i32::try_from(browser).unwrap());
        Self { driver, session, browser, _process: process, _port: port }
    }

    async fn tell(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        let path = format!("/session/{}{path}", self.session);
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let (status, text) =
            http::ask(&self.driver, method, &path, &body).await.map_err(|error| error.to_string())?;
        let answer: Value = serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))?;
        if status == 200 { Ok(answer["value"].clone()) } else { Err(answer["value"]["message"].to_string()) }
    }

    /// Opens a page.
    ///
    /// # Panics
    /// When it cannot be loaded.
    pub async fn open(&self, url: &str) {
        self.tell("POST", "/url", json!({ "url": url })).await.unwrap();
    }

    /// The address that it shows.
    ///
    /// # Panics
    /// When it shows none.
    pub async fn url(&self) -> String {
        self.tell("GET", "/url", Value::Null).await.unwrap().as_str().unwrap().to_owned()
    }

    /// Does something with the first element that a CSS selector finds, once there is one that takes it.
    async fn on(&self, selector: &str, method: &str, what: &str, body: Value) -> Value {
        eventually(&format!("{what} of {selector}"), PATIENCE, async || {
            let found = json!({ "using": "css selector", "value": selector });
            let element = self.tell("POST", "/element", found).await?;
            let id = element[ELEMENT].as_str().ok_or("no element")?;
            self.tell(method, &format!("/element/{id}/{what}"), body.clone()).await
        })
        .await
    }

    /// Types a text into a field, in place of what is there.
    pub async fn fill(&self, selector: &str, text: &str) {
        let _ = self.on(selector, "POST", "clear", json!({})).await;
        let _ = self.on(selector, "POST", "value", json!({ "text": text })).await;
    }

    /// Clicks.
    pub async fn click(&self, selector: &str) {
        let _ = self.on(selector, "POST", "click", json!({})).await;
    }

    /// What is read there.
    pub async fn text(&self, selector: &str) -> String {
        self.on(selector, "GET", "text", Value::Null).await.as_str().unwrap().to_owned()
    }

    /// Waits until a text is read there.
    pub async fn sees(&self, selector: &str, wanted: &str) {
        eventually(&format!("{wanted:?} in {selector}"), PATIENCE, async || {
            let text = self.text(selector).await;
            if text.contains(wanted) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    /// What a script answers with `return`.
    ///
    /// # Panics
    /// When it fails.
    pub async fn run(&self, script: &str) -> Value {
        self.tell("POST", "/execute/sync", json!({ "script": script, "args": [] })).await.unwrap()
    }

    /// Makes the window that of a phone or, at 1280 pixels, of a desktop, in light or dark colours.
    ///
    /// # Panics
    /// When the browser does not take it.
    pub async fn looks_like(&self, width: u32, height: u32, dark: bool) {
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        for (cmd, params) in
            [("Emulation.setDeviceMetricsOverride", metrics), ("Emulation.setEmulatedMedia", media)]
        {
            self.tell("POST", "/goog/cdp/execute", json!({ "cmd": cmd, "params": params })).await.unwrap();
        }
    }

    /// Writes what is seen to a PNG file.
    ///
    /// # Panics
    /// When it cannot be written.
    pub async fn screenshot(&self, file: &Path) {
        let image = self.tell("GET", "/screenshot", Value::Null).await.unwrap();
        fs::write(file, STANDARD.decode(image.as_str().unwrap()).unwrap()).unwrap();
    }

    /// Gives it an authenticator that is part of the device, knows its user, and says yes.
    ///
    /// # Panics
    /// When the browser has none to give.
    pub async fn add_authenticator(&self) {
        let authenticator = json!({
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": true,
            "hasUserVerification": true,
            "isUserConsenting": true,
            "isUserVerified": true,
        });
        self.tell("POST", "/webauthn/authenticator", authenticator).await.unwrap();
    }

    /// The value of a cookie of the page that it shows; of one that scripts do not see, too.
    ///
    /// # Panics
    /// When it has none of this name.
    pub async fn cookie(&self, name: &str) -> String {
        let cookie = self.tell("GET", &format!("/cookie/{name}"), Value::Null).await.unwrap();
        cookie["value"].as_str().unwrap().to_owned()
    }

    /// What the browser complained of since it was asked last: what a page's policy forbids, scripts that fail.
    ///
    /// # Panics
    /// When it does not say.
    pub async fn complaints(&self) -> Vec<String> {
        let log = self.tell("POST", "/se/log", json!({ "type": "browser" })).await.unwrap();
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap().to_owned()).collect()
    }
}

/// Its driver is there until then, and so the process is no other's by now.
impl Drop for Browser {
    fn drop(&mut self) {
        let _ = signal::kill(self.browser, Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_browser_goes_with_its_test() {
        let dir = tempfile::tempdir().unwrap();
        let browser = Browser::start(dir.path(), "").await;
        let stat = format!("/proc/{}/stat", browser.browser);
        // What it was is behind its name: `Z` when it has ended and nobody has asked for how.
        let state = || {
            let stat = fs::read_to_string(&stat).ok()?;
            stat.rsplit_once(") ")?.1.chars().next().filter(|state| *state != 'Z')
        };
        assert!(state().is_some());
        drop(browser);
        eventually("the browser is gone", PATIENCE, async || state().map_or(Ok(()), Err)).await;
    }
}
