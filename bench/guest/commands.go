package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"

	"connectrpc.com/connect"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
	"github.com/wrenn-sandbox/wrenn/proto/guest/process/processconnect"
)

// execTarget is what a command may cost more over HTTP than by fork and exec, in ms.
const execTarget = 0.6

// warmRounds are run before anything is counted.
const warmRounds = 20

// trueProgram does nothing, well.
const trueProgram = "/bin/true"

// commands measures the round trip of a command that does nothing: from the request to the
// end of the answer.
func (b *bench) commands(ctx context.Context) error {
	runs := []func() error{func() error { return exec.CommandContext(ctx, trueProgram).Run() }}
	for _, d := range b.daemons() {
		client := d.processes()
		runs = append(runs, func() error { return runTrue(ctx, client) })
	}
	took := make([]times, len(runs))
	for round := range b.execs + warmRounds {
		for _, i := range turns(round, len(runs)) {
			began := time.Now()
			if err := runs[i](); err != nil {
				return err
			}
			if round >= warmRounds {
				took[i] = append(took[i], time.Since(began))
			}
		}
	}
	raw, all := took[0], took[1:]
	added := all[0].millis(middle) - raw.millis(middle)
	median := row{
		what: "exec of /bin/true, median, ms", raw: compare("%.2f", all[0].millis(middle), raw.millis(middle)),
		target: fmt.Sprintf("raw + %.1f (is + %.2f)", execTarget, added), verdict: verdict(added <= execTarget),
	}
	median.beside("%.2f", millisOf(all, middle), lower)
	p99 := row{what: "exec of /bin/true, p99, ms", raw: compare("%.2f", all[0].millis(tail), raw.millis(tail))}
	p99.beside("%.2f", millisOf(all, tail), lower)
	b.table.add(median)
	b.table.add(p99)
	return nil
}

func runTrue(ctx context.Context, client processconnect.ProcessClient) error {
	stream, err := client.Start(ctx, connect.NewRequest(&processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: trueProgram},
		Stdin:   new(bool),
	}))
	if err != nil {
		return err
	}
	defer stream.Close()
	var end *processpb.ProcessEvent_EndEvent
	for stream.Receive() {
		end = stream.Msg().GetEvent().GetEnd()
	}
	if err := stream.Err(); err != nil {
		return err
	}
	if end == nil || !end.GetExited() || end.GetExitCode() != 0 {
		return errors.New("the command did not end well")
	}
	return nil
}
