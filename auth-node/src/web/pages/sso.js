import { call, nameCluster } from "./api.js";
import { onSubmit } from "./form.js";

// Behind the #, which is sent to nobody: which program waits on this computer, and by which connector it is to log in.
const given = new URLSearchParams(location.hash.slice(1));
const [connector, challenge, path] = ["connector", "challenge", "path"].map((name) => given.get(name) ?? "");
const port = Number(given.get("port"));
const whole = connector && /^[0-9a-f]{64}$/.test(challenge) && Number.isInteger(port) && port > 0;
// A page that is there already is not loaded anew for what is behind the `#`.
addEventListener("hashchange", () => location.reload());

document.getElementById(whole ? "with" : "without").hidden = false;
if (whole) {
    const front = challenge.slice(0, 8).toUpperCase();
    document.getElementById("confirmation").textContent = `${front.slice(0, 4)}-${front.slice(4)}`;
    document.getElementById("connector").textContent = connector;
    onSubmit(document.getElementById("go"), async () => {
        const { url } = await call("POST", "/sso/login", { connector, program: { challenge, port, path } });
        location.replace(url);
    });
}
nameCluster().then((ping) => {
    const known = (ping.connectors ?? []).find(({ name }) => name === connector);
    if (known?.display_name) document.getElementById("connector").textContent = known.display_name;
});
