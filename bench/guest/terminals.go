package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// What the echo of a character may take, in ms.
const (
	echoTarget     = 0.3
	echoTailTarget = 2.0
)

const (
	terminalCols = 80
	terminalRows = 24
	// echoLimit bounds the wait for one echo: one that does not come is a fault.
	echoLimit = 5 * time.Second
)

// echoScript makes a program answer each character, rather than the kernel's line editing:
// that is what an editor or a shell with a prompt does. It says when it is ready.
const (
	echoScript = "stty raw -echo && printf '" + echoReady + "' && exec cat"
	echoReady  = "@"
)

// terminal is a program on a terminal somewhere. What it prints comes on echoed, with the
// time at which it came.
type terminal struct {
	name   string
	typed  func(context.Context, []byte) error
	echoed chan arrival
	close  func() error
	times  times
}

type arrival struct {
	at   time.Time
	text []byte
}

// terminals measures how long a typed character takes to be seen again.
func (b *bench) terminals(ctx context.Context) (err error) {
	if err := b.echo(ctx, "input as a stream", streamedInput, true); err != nil {
		return err
	}
	return b.echo(ctx, "a request each", requestedInput, false)
}

// way makes the function that types into a process of a daemon.
type way func(context.Context, processconnect.ProcessClient, uint32) (typed func(context.Context, []byte) error, done func() error, err error)

func (b *bench) echo(ctx context.Context, how string, input way, besideSSH bool) (err error) {
	var all []*terminal
	defer func() {
		for _, t := range all {
			err = first(err, t.close())
		}
	}()
	for _, d := range b.daemons() {
		t, err := openTerminal(ctx, d.processes(), input)
		if err != nil {
			return fmt.Errorf("open a terminal of %s: %w", d.binary, err)
		}
		all = append(all, t)
	}
	if besideSSH {
		t, err := b.openSSH(ctx)
		if err != nil {
			return fmt.Errorf("open a terminal over SSH: %w", err)
		}
		if t != nil {
			all = append(all, t)
		}
	}
	for round := range b.echoes + warmRounds {
		for _, i := range turns(round, len(all)) {
			took, err := all[i].echo(ctx, 'a'+byte(round%26))
			if err != nil {
				return fmt.Errorf("%s: %w", all[i].name, err)
			}
			if round >= warmRounds {
				all[i].times = append(all[i].times, took)
			}
		}
	}
	b.addEcho("echo on a terminal, "+how, all)
	return nil
}

func (b *bench) addEcho(what string, all []*terminal) {
	for _, q := range []struct {
		name     string
		quantile float64
		target   float64
	}{{"median", middle, echoTarget}, {"p99", tail, echoTailTarget}} {
		var figures []float64
		for _, t := range all[:len(b.daemons())] {
			figures = append(figures, t.times.millis(q.quantile))
		}
		r := row{
			what:   fmt.Sprintf("%s, %s, ms", what, q.name),
			target: fmt.Sprintf("≤ %g", q.target), verdict: verdict(figures[0] <= q.target),
		}
		if len(all) > len(figures) {
			r.raw = compare("%.3f", figures[0], all[len(figures)].times.millis(q.quantile))
		}
		r.beside("%.3f", figures, lower)
		b.table.add(r)
	}
}

// echo types one character and waits until it is seen.
func (t *terminal) echo(ctx context.Context, char byte) (time.Duration, error) {
	began := time.Now()
	if err := t.typed(ctx, []byte{char}); err != nil {
		return 0, err
	}
	came, err := t.next(ctx)
	if err != nil {
		return 0, err
	}
	if len(came.text) != 1 || came.text[0] != char {
		return 0, fmt.Errorf("typed %q and saw %q", char, came.text)
	}
	return came.at.Sub(began), nil
}

func (t *terminal) next(ctx context.Context) (arrival, error) {
	limit := time.NewTimer(echoLimit)
	defer limit.Stop()
	select {
	case came, ok := <-t.echoed:
		if !ok {
			return arrival{}, io.ErrUnexpectedEOF
		}
		return came, nil
	case <-limit.C:
		return arrival{}, errors.New("nothing was seen")
	case <-ctx.Done():
		return arrival{}, ctx.Err()
	}
}

// awaitReady waits until the program of the terminal echoes.
func (t *terminal) awaitReady(ctx context.Context) error {
	for {
		came, err := t.next(ctx)
		if err != nil {
			return err
		}
		if came.text[len(came.text)-1] == echoReady[0] {
			return nil
		}
	}
}

func openTerminal(ctx context.Context, client processconnect.ProcessClient, input way) (*terminal, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := client.Start(ctx, connect.NewRequest(&processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c", echoScript}},
		Pty:     &processpb.PTY{Size: &processpb.PTY_Size{Cols: terminalCols, Rows: terminalRows}},
	}))
	if err != nil {
		cancel()
		return nil, err
	}
	if !stream.Receive() {
		cancel()
		return nil, fmt.Errorf("no start: %w", stream.Err())
	}
	pid := stream.Msg().GetEvent().GetStart().GetPid()
	t := &terminal{name: "terminal", echoed: make(chan arrival, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(t.echoed)
		for stream.Receive() {
			if text := stream.Msg().GetEvent().GetData().GetPty(); len(text) > 0 {
				select {
				case t.echoed <- arrival{time.Now(), text}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	typed, done, err := input(ctx, client, pid)
	if err != nil {
		cancel()
		return nil, err
	}
	t.typed = typed
	t.close = func() error {
		defer cancel()
		err := first(done(), kill(ctx, client, pid))
		<-ended
		return first(err, stream.Close())
	}
	if err := t.awaitReady(ctx); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return t, nil
}

func kill(ctx context.Context, client processconnect.ProcessClient, pid uint32) error {
	_, err := client.SendSignal(ctx, connect.NewRequest(&processpb.SendSignalRequest{
		Process: selector(pid), Signal: processpb.Signal_SIGNAL_SIGKILL,
	}))
	return err
}

func selector(pid uint32) *processpb.ProcessSelector {
	return &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Pid{Pid: pid}}
}

// requestedInput types with a request for each character, as the SDKs do.
func requestedInput(_ context.Context, client processconnect.ProcessClient, pid uint32) (func(context.Context, []byte) error, func() error, error) {
	typed := func(ctx context.Context, text []byte) error {
		_, err := client.SendInput(ctx, connect.NewRequest(&processpb.SendInputRequest{
			Process: selector(pid),
			Input:   &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: text}},
		}))
		return err
	}
	return typed, func() error { return nil }, nil
}

// streamedInput types into one request that stays open, as a terminal in a browser does.
func streamedInput(ctx context.Context, client processconnect.ProcessClient, pid uint32) (func(context.Context, []byte) error, func() error, error) {
	stream := client.StreamInput(ctx)
	err := stream.Send(&processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Start{
		Start: &processpb.StreamInputRequest_StartEvent{Process: selector(pid)},
	}})
	if err != nil {
		return nil, nil, err
	}
	typed := func(_ context.Context, text []byte) error {
		return stream.Send(&processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Data{
			Data: &processpb.StreamInputRequest_DataEvent{
				Input: &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: text}},
			},
		}})
	}
	done := func() error {
		_, err := stream.CloseAndReceive()
		return err
	}
	return typed, done, nil
}
