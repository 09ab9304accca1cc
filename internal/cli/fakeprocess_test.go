package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"

	"github.com/coder/websocket"
	"golang.org/x/sys/unix"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// fakeTerminal is a terminal of a sandbox, with a program of this machine in it.
type fakeTerminal struct {
	tag    string
	master *os.File
	cmd    *exec.Cmd

	mu      sync.Mutex
	printed []byte
	clients map[*websocket.Conn]struct{}
	over    *ended
}

// terminal serves …/pty.
func (s *fakeServer) terminal(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	var first terminalMessage
	if _, text, err := conn.Read(context.Background()); err != nil || json.Unmarshal(text, &first) != nil {
		return nil
	}
	t, err := s.openTerminal(first)
	if err != nil {
		tell(conn, map[string]any{"type": "error", "data": fault.MessageOf(err), "code": fault.CodeOf(err), "fatal": true})
		_ = conn.Close(websocket.StatusPolicyViolation, "")
		return nil
	}
	t.join(conn)
	defer t.part(conn)
	for {
		_, text, err := conn.Read(context.Background())
		if err != nil {
			return nil
		}
		var m terminalMessage
		if err := json.Unmarshal(text, &m); err != nil {
			panic(err)
		}
		t.do(m)
	}
}

func (s *fakeServer) openTerminal(first terminalMessage) (*fakeTerminal, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if first.Type == "connect" {
		if t := s.terminals[first.Tag]; t != nil {
			return t, nil
		}
		return nil, fault.New(fault.NotFound, "process with tag '%s' not found", first.Tag)
	}
	master, slave, err := newPTY()
	if err != nil {
		panic(err)
	}
	defer slave.Close()
	t := &fakeTerminal{tag: first.Tag, master: master, clients: map[*websocket.Conn]struct{}{}}
	if t.tag == "" {
		t.tag = "pty-" + strconv.Itoa(len(s.terminals)+1)
	}
	name, args := first.Cmd, first.Args
	if name == "" {
		name, args = "/bin/sh", []string{"-i"}
	}
	t.cmd = exec.Command(name, args...)
	t.cmd.Env = []string{"PATH=/usr/bin:/bin", "PS1=ready> "}
	for k, v := range first.Envs {
		t.cmd.Env = append(t.cmd.Env, k+"="+v)
	}
	t.cmd.Stdin, t.cmd.Stdout, t.cmd.Stderr = slave, slave, slave
	t.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	t.do(terminalMessage{Type: "resize", Cols: first.Cols, Rows: first.Rows})
	if err := t.cmd.Start(); err != nil {
		return nil, fault.New(fault.InvalidRequest, "%v", err)
	}
	s.terminals[t.tag] = t
	go t.print()
	return t, nil
}

// print sends what is printed to everybody until the program ends.
func (t *fakeTerminal) print() {
	buf := make([]byte, 16<<10)
	for {
		n, err := t.master.Read(buf)
		if err != nil {
			break
		}
		t.mu.Lock()
		t.printed = append(t.printed, buf[:n]...)
		for conn := range t.clients {
			tell(conn, output64(buf[:n]))
		}
		t.mu.Unlock()
	}
	how := endOf(context.Background(), t.cmd.Wait())
	_ = t.master.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = &how
	for conn := range t.clients {
		t.tellEnd(conn)
	}
}

func (t *fakeTerminal) tellEnd(conn *websocket.Conn) {
	tell(conn, fakeMessage{Type: "exit", ExitCode: t.over.ExitCode, Signal: t.over.Signal})
	go conn.Close(websocket.StatusNormalClosure, "")
}

func output64(data []byte) map[string]any {
	return map[string]any{"type": "output", "data": base64.StdEncoding.EncodeToString(data)}
}

func tell(conn *websocket.Conn, m any) { _ = sendJSON(context.Background(), conn, m) } // the client may be gone

// join lets a client see what was printed and what will be.
func (t *fakeTerminal) join(conn *websocket.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	tell(conn, map[string]any{"type": "started", "tag": t.tag, "pid": t.cmd.Process.Pid, "replay_bytes": len(t.printed)})
	tell(conn, map[string]any{"type": "ping"})
	if len(t.printed) > 0 {
		tell(conn, output64(t.printed))
	}
	if t.over != nil {
		t.tellEnd(conn)
		return
	}
	t.clients[conn] = struct{}{}
}

func (t *fakeTerminal) part(conn *websocket.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.clients, conn)
}

// pause ends every connection as the pause of the sandbox does.
func (t *fakeTerminal) pause() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for conn := range t.clients {
		tell(conn, map[string]any{"type": "error", "data": "the sandbox was paused", "code": fault.InvalidState, "fatal": true})
		_ = conn.Close(statusPaused, "")
	}
}

// cut breaks every connection to the terminal.
func (t *fakeTerminal) cut() { t.sendAway("") }

// sendAway is cut that tells the reason first, if there is one.
func (t *fakeTerminal) sendAway(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for conn := range t.clients {
		if reason != "" {
			tell(conn, map[string]any{"type": "error", "data": reason, "code": fault.HostUnavailable, "fatal": true})
		}
		_ = conn.CloseNow()
	}
}

func (t *fakeTerminal) do(m terminalMessage) {
	switch m.Type {
	case "input":
		data, err := base64.StdEncoding.DecodeString(m.Data)
		if err != nil {
			panic(err)
		}
		_, _ = t.master.Write(data) // the program may have ended
	case "resize":
		size := &unix.Winsize{Row: uint16(m.Rows), Col: uint16(m.Cols)}
		if raw, err := t.master.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) { _ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, size) })
		}
	case "kill":
		_ = unix.Kill(-t.cmd.Process.Pid, unix.SIGKILL)
	}
}

// signal serves DELETE …/processes/{process}.
func (s *fakeServer) signal(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name, sig := r.PathValue("process"), r.URL.Query().Get("signal")
	if t := s.terminals[name]; t != nil {
		t.do(terminalMessage{Type: "kill"})
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	for i, p := range s.processes {
		if p.Tag == name || strconv.FormatInt(p.Pid, 10) == name {
			s.processes = append([]api.Process{}, s.processes[:i]...)
			s.signals = append(s.signals, sig)
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
	}
	return fault.New(fault.NotFound, "process with tag '%s' not found", name)
}

// follow serves …/processes/{process}/stream: "web" has printed and goes on to print, and
// "done" ended with 3. What the others do is in followBroken.
func (s *fakeServer) follow(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.find(r); err != nil {
		return err
	}
	if r.PathValue("process") == "43" && s.refuseOnce() {
		return fault.New(fault.HostUnavailable, "the host is away")
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	ctx := conn.CloseRead(context.Background())
	name := r.PathValue("process")
	if s.followBroken(conn, name, r.URL.Query()) {
		return nil
	}
	if name != "web" && name != "done" {
		tell(conn, map[string]any{"type": "error", "code": "not_found", "data": "process with tag '" + name + "' not found", "fatal": true})
		_ = conn.Close(websocket.StatusPolicyViolation, "")
		return nil
	}
	if r.URL.Query().Get("replay") == "true" {
		tell(conn, map[string]any{"type": "start", "pid": 42, "tag": name, "replay_bytes": len("old\ncomplaint\n\xc3")})
		tell(conn, map[string]any{"type": "stdout", "data": "old\n"})
		tell(conn, map[string]any{"type": "stderr", "data": "complaint\n"})
	} else {
		tell(conn, map[string]any{"type": "start", "pid": 42, "tag": name})
	}
	if name == "done" {
		tell(conn, map[string]any{"type": "stdout", "data": "new\n"})
		tell(conn, map[string]any{"type": "exit", "exit_code": 3})
		_ = conn.Close(websocket.StatusNormalClosure, "")
		return nil
	}
	<-ctx.Done() // it goes on
	return nil
}

// refuseOnce is true once.
func (s *fakeServer) refuseOnce() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.refused
	s.refused = true
	return !was
}

// followBroken plays processes whose connection breaks, first known by their name and then
// by their pid, and says whether it is one of them. "flaky" ends with 4, and has lost some
// output when it is found again; "reborn" has another past then, and "past" is gone. Of
// "elder" nobody says where its output begins.
func (s *fakeServer) followBroken(conn *websocket.Conn, process string, query url.Values) bool {
	const (
		before, lost, after = "one\ntwo\n", "three\nfour\n", "five\n"
		complaint           = "oh\n"
	)
	offset := func(stdout, stderr int) map[string]any { return map[string]any{"stdout": stdout, "stderr": stderr} }
	pids := map[string]int{"flaky": 43, "reborn": 44, "past": 45, "elder": 46}
	switch process {
	case "flaky", "reborn", "past", "elder":
		start := map[string]any{"type": "start", "pid": pids[process], "tag": process, "offset": offset(0, 0)}
		if process == "elder" {
			delete(start, "offset")
		}
		tell(conn, start)
		tell(conn, map[string]any{"type": "stdout", "data": before})
		tell(conn, map[string]any{"type": "stderr", "data": complaint})
		tell(conn, map[string]any{"type": "error", "data": "the server is stopping", "code": fault.HostUnavailable, "fatal": true})
	case "43":
		at := len(before) + len(lost)
		if query.Get("stdout_from") != strconv.Itoa(len(before)) || query.Get("stderr_from") != strconv.Itoa(len(complaint)) {
			at = 0 // then what follows comes twice
		}
		tell(conn, map[string]any{"type": "start", "pid": 43, "offset": offset(at, len(complaint))})
		tell(conn, map[string]any{"type": "stdout", "data": (before + lost + after)[at:]})
		tell(conn, map[string]any{"type": "exit", "exit_code": 4})
	case "44":
		tell(conn, map[string]any{"type": "start", "pid": 44, "offset": offset(1, 0)})
		tell(conn, map[string]any{"type": "stdout", "data": "other\n"})
	case "45":
		tell(conn, map[string]any{"type": "error", "data": "process with pid 45 not found", "code": fault.NotFound, "fatal": true})
	default:
		return false
	}
	_ = conn.Close(websocket.StatusGoingAway, "")
	return true
}
