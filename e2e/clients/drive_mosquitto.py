"""Drives mosquitto_pub and mosquitto_sub by JSON lines; `clients.rs` describes them.

Each publish is a run of mosquitto_pub, each subscription a mosquitto_sub that goes on until `disconnect`: so
one driver plays a publisher or a subscriber of one filter, and a refused connection shows at the first of either.
"""

import base64
import json
import subprocess
import sys
import threading


def say(event, **fields):
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def login(command):
    arguments = ["-h", command["host"], "-p", str(command["port"]), "-i", command["clientId"]]
    version = {3: "mqttv31", 4: "mqttv311", 5: "mqttv5"}[command["version"]]
    arguments += ["-V", version, "-k", str(max(command["keepAlive"], 5))]
    if command.get("username") is not None:
        arguments += ["-u", command["username"]]
    if command.get("password") is not None:
        arguments += ["-P", command["password"]]
    if tls := command.get("tls"):
        arguments += ["--cafile", tls["ca"], "--tls-version", "tlsv" + tls["version"], "--tls-alpn", "mqtt"]
        if tls["certificate"]:
            arguments += ["--cert", tls["certificate"], "--key", tls["key"]]
    return arguments


def subscribe(session, command):
    arguments = ["stdbuf", "-oL", "mosquitto_sub", *login(session), "-d"]
    arguments += ["-t", command["filter"], "-q", str(command["qos"]), "-F", "message %q %r %x %t"]
    if not session["clean"]:
        arguments += ["-c"]
        if session["version"] == 5:
            arguments += ["-x", str(session["expiry"])]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    threading.Thread(target=read_messages, args=(process,), daemon=True).start()
    return process


def read_messages(process):
    for line in process.stdout:
        line = line.rstrip("\n")
        if line.startswith("Subscribed ("):
            say("subscribed", reasons=[int(code) for code in line.rsplit(": ", 1)[1].split(", ")])
        elif line.startswith("message "):
            _, qos, retain, payload, topic = line.split(" ", 4)
            payload = base64.b64encode(bytes.fromhex(payload)).decode()
            say("message", topic=topic, payload=payload, qos=int(qos), retain=retain == "1")
    say("closed", reason=0 if process.wait() == 0 else 0x80)


def publish(session, command):
    arguments = ["mosquitto_pub", *login(session), "-t", command["topic"], "-q", str(command["qos"]), "-s"]
    if command["retain"]:
        arguments += ["-r"]
    done = subprocess.run(arguments, input=base64.b64decode(command["payload"]), capture_output=True)
    failed = done.returncode != 0 or b"failed" in done.stderr
    say("published", tag=command["tag"], reason=0x80 if failed else 0)


def main():
    session = None
    subscribers = []
    for line in sys.stdin:
        command = json.loads(line)
        match command["do"]:
            case "connect":
                session = command
                say("connected", sessionPresent=False)
            case "subscribe":
                subscribers.append(subscribe(session, command))
            case "publish":
                publish(session, command)
            case "disconnect":
                for process in subscribers:
                    process.terminate()
                if not subscribers:
                    say("closed", reason=0)
    for process in subscribers:
        process.kill()


main()
