package runtimetest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// witnessProgram remembers things in memory, counts without end, in memory and in a file,
// and tells about it on a port: what it should still know after a checkpoint.
const witnessProgram = `
import hashlib, json, os, socketserver, threading, time

secret = os.urandom(%d)
state = {"count": 0, "gap": 0.0, "fired": 0}

def count():
    last = time.monotonic()
    with open("/root/count", "w") as f:
        while True:
            now = time.monotonic()
            state["gap"] = max(state["gap"], now - last)
            last = now
            state["count"] += 1
            f.seek(0)
            f.write(str(state["count"]))
            f.flush()
            time.sleep(0.001)

def fire():
    state["fired"] += 1

class Witness(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            word, _, number = line.decode().strip().partition(" ")
            if word == "timer":
                threading.Timer(float(number), fire).start()
            if word == "forget":
                state["gap"] = 0.0
            answer = dict(state, file=int(open("/root/count").read() or 0))
            if word == "prove":
                answer["secret"] = hashlib.sha256(secret).hexdigest()
            self.wfile.write(json.dumps(answer).encode() + b"\n")

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

server = Server(("0.0.0.0", %d), Witness)
threading.Thread(target=count, daemon=True).start()
server.serve_forever()
`

const (
	witnessPort = 7000
	witnessFile = "/root/witness.py"
	witnessWait = 10 * time.Second
)

// testimony is what a witness says.
type testimony struct {
	// Count is what it has counted to, File how far it has written that down.
	Count, File int
	// Gap is the longest time that it did not run, in seconds, since it was asked to forget.
	Gap float64
	// Fired is how many of its timers have run out.
	Fired int
	// Secret is a hash of what it has in memory, when it was asked to prove it.
	Secret string
}

// witness is a running witnessProgram.
type witness struct{ address string }

// bringWitness starts a witness with so many bytes in memory, which is the background job
// of a shell that has ended.
func (g guest) bringWitness(t *testing.T, memory int) witness {
	t.Helper()
	program := fmt.Sprintf(witnessProgram, memory, witnessPort)
	g.write(t, witnessFile, program)
	if out, end := g.sh(t, "root", "setsid python3 "+witnessFile+" >/root/witness.log 2>&1 </dev/null &"); end.ExitCode != 0 {
		t.Fatalf("start the witness: %s", out)
	}
	w := g.witness()
	if !eventually(func() bool { _, err := w.ask("look"); return err == nil }) {
		out, _ := g.sh(t, "root", "cat /root/witness.log")
		t.Fatalf("the witness does not speak: %s", out)
	}
	return w
}

// witness returns the one that runs in the guest.
func (g guest) witness() witness {
	return witness{net.JoinHostPort(g.address.String(), fmt.Sprint(witnessPort))}
}

// ask asks one question, on a connection of its own.
func (w witness) ask(question string) (said testimony, err error) {
	dialer := net.Dialer{Timeout: witnessWait}
	conn, err := dialer.DialContext(context.Background(), "tcp", w.address)
	if err != nil {
		return said, err
	}
	defer conn.Close()
	err = talk(conn, question, &said)
	return said, err
}

// says is ask for an answer that must come.
func (w witness) says(t *testing.T, question string) testimony {
	t.Helper()
	said, err := w.ask(question)
	if err != nil {
		t.Fatalf("the witness does not answer: %v", err)
	}
	return said
}

// talk asks a question on a connection.
func talk(conn net.Conn, question string, said *testimony) error {
	if err := conn.SetDeadline(time.Now().Add(witnessWait)); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, question); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, said)
}

// write writes a file as root.
func (g guest) write(t *testing.T, file, content string) {
	t.Helper()
	if err := g.WriteFile(t.Context(), file, "root", strings.NewReader(content), int64(len(content))); err != nil {
		t.Fatalf("write %s: %v", file, err)
	}
}
