import { call, nameCluster, Refusal } from "./api.js";
import { canBeShown, onClick, onSubmit } from "./form.js";
import * as passkey from "./passkey.js";
import { pageAskedFor } from "./session.js";

const form = document.getElementById("login");
const { username, password } = form.elements;

/** What is left out is said before anything is sent. */
function needed(input, message) {
    if (!input.value) throw new Refusal({ code: "MISSING", field: input.name, message });
}

canBeShown(password, document.getElementById("show"));
onSubmit(form, async () => {
    needed(username, "Type your username.");
    needed(password, "Type your password.");
    // Keyboards of phones add a space.
    const given = { username: username.value.trim(), password: password.value };
    const answer = await call("POST", "/login", given);
    if (answer.step_up) {
        const { challenge_id, options } = answer.step_up;
        const credential = await passkey.get(options);
        await call("POST", "/login/finish", { challenge_id, credential });
    }
    location.replace(pageAskedFor());
});

/** Without a password, and without a name: the passkey knows both. */
async function withPasskey() {
    const { challenge_id, options } = await call("POST", "/login/passkey", {});
    const credential = await passkey.get(options);
    await call("POST", "/login/passkey/finish", { challenge_id, credential });
    location.replace(pageAskedFor());
}

/** By a provider elsewhere, which sends the browser back. */
async function withConnector(connector) {
    const { url } = await call("POST", "/sso/login", { connector });
    location.assign(url);
}

/** A button for each connector that somebody can log in by. */
function offer({ name, display_name, kind }) {
    if (kind !== "oidc" && kind !== "github") return;
    const button = document.createElement("button");
    button.type = "button";
    button.className = "full";
    button.dataset.connector = name;
    button.textContent = `Log in with ${display_name || name}`;
    onClick(form, button, () => withConnector(name));
    document.getElementById("connectors").append(button);
}

/** With what a single sign-on sends the browser back that has not logged in. */
const SSO = {
    "#sso-anew": "This login is over, or was begun in another window. Log in anew, and finish within ten minutes.",
    "#sso-unproved": "Your provider did not say who you are, or not in a way that is believed. Try again, or ask an administrator.",
    "#sso-not-let-in": "Your provider knows you, and this cluster does not let you in by it. Ask an administrator, who finds the reason in the audit log.",
    "#sso-failed": "The login could not be carried out. Try again.",
};
function sayWhy() {
    if (!SSO[location.hash]) return;
    form.querySelector(".notice").textContent = SSO[location.hash];
    history.replaceState(null, "", location.pathname);
}

sayWhy();
// A page that is there already is not loaded anew for what is behind the `#`.
addEventListener("hashchange", sayWhy);

onClick(form, document.getElementById("with-passkey"), withPasskey);
nameCluster().then((ping) => {
    document.getElementById("with-passkey").hidden = !(passkey.supported && ping.passkeys);
    // Where no address is known to which a provider could send the browser back, there is none to offer.
    if (ping.public_url) (ping.connectors ?? []).forEach(offer);
    const others = document.querySelectorAll("#others button:not([hidden])");
    document.getElementById("others").hidden = others.length === 0;
});
