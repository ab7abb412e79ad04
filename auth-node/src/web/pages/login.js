import { call, nameCluster, Refusal } from "./api.js";
import { canBeShown, onSubmit } from "./form.js";
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
nameCluster();
