package freeze

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"

	filesystempb "github.com/wrenn-sandbox/wrenn/proto/guest/filesystem"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// command is a running process of a client.
type command struct {
	load   *load
	stream *connect.ServerStreamForClient[processpb.StartResponse]
	pid    uint32
	output *bufio.Reader // of all that it prints
	ended  chan *processpb.ProcessEvent_EndEvent
	cancel context.CancelFunc
}

// start starts a shell script. Its output must be read to the end, and then its end.
func (l *load) start(ctx context.Context, script string, change func(*processpb.StartRequest)) (*command, error) {
	stdin := false
	req := &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", script}},
		Stdin:   &stdin,
	}
	if change != nil {
		change(req)
	}
	ctx, cancel := context.WithCancel(ctx)
	l.asking.RLock()
	defer l.asking.RUnlock()
	stream, err := l.process.Start(ctx, connect.NewRequest(req))
	if err == nil && !stream.Receive() {
		err = fmt.Errorf("no first message: %w", stream.Err())
	}
	if err != nil {
		cancel()
		return nil, err
	}
	r, w := io.Pipe()
	c := &command{
		load: l, stream: stream, pid: stream.Msg().GetEvent().GetStart().GetPid(),
		output: bufio.NewReader(r), ended: make(chan *processpb.ProcessEvent_EndEvent, 1),
		cancel: func() {
			cancel()
			_ = r.Close()
		},
	}
	go func() {
		defer cancel()
		_ = w.CloseWithError(c.pump(w))
	}()
	return c, nil
}

func (c *command) pump(w io.Writer) error {
	for c.stream.Receive() {
		ev := c.stream.Msg().GetEvent()
		if end := ev.GetEnd(); end != nil {
			c.ended <- end
			continue
		}
		data := ev.GetData()
		for _, piece := range [][]byte{data.GetStdout(), data.GetStderr(), data.GetPty()} {
			if len(piece) == 0 {
				continue
			}
			if _, err := w.Write(piece); err != nil {
				return err
			}
		}
	}
	close(c.ended)
	if err := c.stream.Err(); err != nil {
		return err
	}
	return io.EOF
}

// line returns the next line of output.
func (c *command) line() (string, error) {
	text, err := c.output.ReadString('\n')
	return strings.TrimRight(text, "\r\n"), err
}

// finish reads what is left and checks how the process ended.
func (c *command) finish(code int32) error {
	defer c.cancel()
	if _, err := io.Copy(io.Discard, c.output); err != nil {
		return err
	}
	end := <-c.ended
	if end == nil {
		return errEarly
	}
	if end.GetExitCode() != code || !end.GetExited() {
		return fmt.Errorf("the end is %v, want exit code %d", end, code)
	}
	return nil
}

func (c *command) send(ctx context.Context, input *processpb.ProcessInput) error {
	c.load.asking.RLock()
	defer c.load.asking.RUnlock()
	_, err := c.load.process.SendInput(ctx, connect.NewRequest(&processpb.SendInputRequest{Process: c.selector(), Input: input}))
	return err
}

func (c *command) selector() *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: c.pid}}
}

// numberedLines reads a command that counts slowly until it is told to stop.
func (l *load) numberedLines(ctx context.Context, c *client) error {
	flag := path.Join(l.dir, "stop-counting")
	return l.count(ctx, c, flag, counter(flag, `print $i++, "\n"`, 20*time.Millisecond)+`; print "end\n"; exit 7'`)
}

// flood reads a command that prints in bursts, so that the daemon is full of output at most
// moments.
func (l *load) flood(ctx context.Context, c *client) error {
	flag := path.Join(l.dir, "stop-flooding")
	return l.count(ctx, c, flag, counter(flag, `print $i++, "\n" for 1..200`, 10*time.Millisecond)+`; print "end\n"; exit 7'`)
}

// counter is the begin of a script that does something with a number $i, from 0 on, until
// there is a file flag. It needs no other process to wait: of a shell whose sleep ended in a
// checkpoint, gVisor has been seen to lose the news of that end.
func counter(flag, what string, pause time.Duration) string {
	return fmt.Sprintf(`exec perl -e '$| = 1; $i = 0; until (-e "%s") { %s; select undef, undef, undef, %g }`, flag, what, pause.Seconds())
}

func (l *load) count(ctx context.Context, c *client, flag, script string) error {
	cmd, err := l.start(ctx, script, nil)
	if err != nil {
		return err
	}
	defer cmd.cancel()
	stopping := false
	for want := 0; ; want++ {
		text, err := cmd.line()
		if err != nil {
			return err
		}
		if stopping && text == "end" {
			return cmd.finish(7)
		}
		if text != strconv.Itoa(want) {
			return fmt.Errorf("line %q after %d", text, want-1)
		}
		c.progress()
		if l.ending() && !stopping {
			stopping = true
			if err := l.upload(ctx, flag, nil); err != nil {
				return err
			}
		}
	}
}

// stdin writes to a command that gives back what it reads.
func (l *load) stdin(ctx context.Context, c *client) error {
	cmd, err := l.start(ctx, "exec cat", func(req *processpb.StartRequest) { *req.Stdin = true })
	if err != nil {
		return err
	}
	defer cmd.cancel()
	for n := 0; !l.ending(); n++ {
		text := fmt.Sprintf("input %d", n)
		if err := cmd.send(ctx, &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: []byte(text + "\n")}}); err != nil {
			return err
		}
		if got, err := cmd.line(); err != nil || got != text {
			return fmt.Errorf("%q comes back as %q: %w", text, got, err)
		}
		c.progress()
	}
	l.asking.RLock()
	defer l.asking.RUnlock()
	if _, err := l.process.CloseStdin(ctx, connect.NewRequest(&processpb.CloseStdinRequest{Process: cmd.selector()})); err != nil {
		return err
	}
	return cmd.finish(0)
}

// terminal types into a terminal and resizes it.
func (l *load) terminal(ctx context.Context, c *client) error {
	const columns = 80
	cmd, err := l.start(ctx, `stty raw -echo; echo ready; while read -r word rest; do
		case $word in size) stty size;; quit) exit 5;; *) echo "$word $rest";; esac; done`,
		func(req *processpb.StartRequest) {
			req.Pty = &processpb.PTY{Size: &processpb.PTY_Size{Cols: columns, Rows: 24}}
			req.Stdin = nil
		})
	if err != nil {
		return err
	}
	defer cmd.cancel()
	if got, err := cmd.line(); err != nil || got != "ready" {
		return fmt.Errorf("terminal begins with %q: %w", got, err)
	}
	ask := func(text, want string) error {
		if err := cmd.send(ctx, &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte(text + "\n")}}); err != nil {
			return err
		}
		if got, err := cmd.line(); err != nil || got != want {
			return fmt.Errorf("%q is answered %q, want %q: %w", text, got, want, err)
		}
		c.progress()
		return nil
	}
	for n := 1; !l.ending(); n++ {
		rows := uint32(n%1000 + 1)
		if err := ask(fmt.Sprintf("key %d", n), fmt.Sprintf("key %d", n)); err != nil {
			return err
		}
		if err := l.resize(ctx, cmd, columns, rows); err != nil {
			return err
		}
		if err := ask("size", fmt.Sprintf("%d %d", rows, columns)); err != nil {
			return err
		}
	}
	if err := cmd.send(ctx, &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte("quit\n")}}); err != nil {
		return err
	}
	return cmd.finish(5)
}

func (l *load) resize(ctx context.Context, cmd *command, columns, rows uint32) error {
	l.asking.RLock()
	defer l.asking.RUnlock()
	_, err := l.process.Update(ctx, connect.NewRequest(&processpb.UpdateRequest{
		Process: cmd.selector(), Pty: &processpb.PTY{Size: &processpb.PTY_Size{Cols: columns, Rows: rows}},
	}))
	return err
}

// shortCommands runs one command after the other.
func (l *load) shortCommands(ctx context.Context, c *client) error {
	for n := 0; !l.ending(); n++ {
		code := int32(n % 100)
		cmd, err := l.start(ctx, fmt.Sprintf("echo %d; exit %d", n, code), nil)
		if err != nil {
			return err
		}
		if got, err := cmd.line(); err != nil || got != strconv.Itoa(n) {
			return fmt.Errorf("command %d prints %q: %w", n, got, err)
		}
		if err := cmd.finish(code); err != nil {
			return err
		}
		c.progress()
	}
	return nil
}

// watch sees every file that a command makes, once and in order.
func (l *load) watch(ctx context.Context, c *client) error {
	dir, flag := path.Join(l.dir, "watched"), path.Join(l.dir, "stop-making")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := l.watchDir(ctx, dir)
	if err != nil {
		return err
	}
	maker, err := l.start(ctx, counter(flag, `open F, ">", "`+dir+`/" . $i++; close F`, 20*time.Millisecond)+`; print "$i\n"; open F, ">", "`+dir+`/end"'`, nil)
	if err != nil {
		return err
	}
	stopping := false
	for want := 0; stream.Receive(); {
		ev := stream.Msg().GetFilesystem()
		if ev.GetType() != filesystempb.EventType_EVENT_TYPE_CREATE {
			continue
		}
		if ev.GetName() == "end" && stopping {
			if made, err := maker.line(); err != nil || made != strconv.Itoa(want) {
				return fmt.Errorf("%d files were seen of %s: %w", want, made, err)
			}
			return maker.finish(0)
		}
		if ev.GetName() != strconv.Itoa(want) {
			return fmt.Errorf("file %q after %d", ev.GetName(), want-1)
		}
		want++
		c.progress()
		if l.ending() && !stopping {
			stopping = true
			if err := l.upload(ctx, flag, nil); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%w: %w", errEarly, stream.Err())
}

func (l *load) watchDir(ctx context.Context, dir string) (*connect.ServerStreamForClient[filesystempb.WatchDirResponse], error) {
	l.asking.RLock()
	defer l.asking.RUnlock()
	if _, err := l.files.MakeDir(ctx, connect.NewRequest(&filesystempb.MakeDirRequest{Path: dir})); err != nil {
		return nil, err
	}
	stream, err := l.files.WatchDir(ctx, connect.NewRequest(&filesystempb.WatchDirRequest{Path: dir}))
	if err != nil {
		return nil, err
	}
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		return nil, fmt.Errorf("no first message: %w", stream.Err())
	}
	return stream, nil
}

// transfers uploads files and reads them back.
func (l *load) transfers(ctx context.Context, c *client) error {
	const size = 300 << 10
	for n := 0; !l.ending(); n++ {
		file := path.Join(l.dir, fmt.Sprintf("file-%d", n%3))
		content := bytes.Repeat(fmt.Appendf(nil, "%10d\n", n), size/11)
		if err := l.upload(ctx, file, content); err != nil {
			return err
		}
		got, err := l.download(ctx, file)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, content) {
			return fmt.Errorf("file %d comes back with %d bytes of %d", n, len(got), len(content))
		}
		c.progress()
	}
	return nil
}
