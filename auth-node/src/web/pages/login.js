import { call, nameCluster, Refusal } from "./api.js";
import { canBeShown, onSubmit, sentence } from "./form.js";
import * as passkey from "./passkey.js";

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
    location.replace("/web/devices");
});

/** Without a password, and without a name: the passkey knows both. */
async function withPasskey() {
    const notice = form.querySelector(".notice");
    notice.textContent = "";
    try {
        const { challenge_id, options } = await call("POST", "/login/passkey", {});
        const credential = await passkey.get(options);
        await call("POST", "/login/passkey/finish", { challenge_id, credential });
        location.replace("/web/devices");
    } catch (refusal) {
        notice.textContent = sentence(refusal.message);
    }
}

document.getElementById("with-passkey").addEventListener("click", withPasskey);
nameCluster().then((ping) => {
    document.getElementById("passkey").hidden = !(passkey.supported && ping.passkeys);
});
