package rpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
	"github.com/wrenn-sandbox/wrenn/internal/guest/process"
	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// defaultKeepAlive is how long a stream may be silent unless its client says otherwise.
const defaultKeepAlive = 90 * time.Second

func keepAlive(header http.Header) time.Duration {
	seconds, err := strconv.ParseUint(header.Get("Keepalive-Ping-Interval"), 10, 31)
	if err != nil || seconds == 0 {
		return defaultKeepAlive
	}
	return time.Duration(seconds) * time.Second
}

// sendEvents sends p's start and what sub brings until the process has ended. The messages
// passed to send are used again for the next.
func sendEvents(ctx context.Context, p *process.Process, sub *process.Subscription, idle time.Duration, send func(*processpb.ProcessEvent) error) error {
	msg := &processpb.ProcessEvent{Event: &processpb.ProcessEvent_Start{
		Start: &processpb.ProcessEvent_StartEvent{Pid: uint32(p.PID())},
	}}
	if err := send(msg); err != nil {
		return clientGone(err)
	}
	var output dataMessage
	for {
		ev, err := sub.Next(ctx, idle)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, context.DeadlineExceeded):
			// The Start of a process has no such deadline, only a stream to one that runs.
			return fault.Wrap(err, fault.DeadlineExceeded, "the time of this connection is over; the process goes on")
		case err != nil:
			return err
		}
		switch ev.Kind {
		case process.Stdout, process.Stderr, process.Terminal:
			msg.Event = output.of(ev)
		case process.Idle:
			msg.Event = &processpb.ProcessEvent_Keepalive{Keepalive: &processpb.ProcessEvent_KeepAlive{}}
		case process.Ended:
			lastMessages(ctx)
			if ev.End.TimedOut {
				return fault.New(fault.DeadlineExceeded,
					"the command did not finish within %d ms and was killed", p.Spec().Limit.Milliseconds())
			}
			msg.Event = endEvent(ev.End)
		}
		err = send(msg)
		ev.Release()
		if err != nil {
			return clientGone(err)
		}
	}
}

// dataMessage is the message of a piece of output, made once for all pieces.
type dataMessage struct {
	event  processpb.ProcessEvent_Data
	data   processpb.ProcessEvent_DataEvent
	stdout processpb.ProcessEvent_DataEvent_Stdout
	stderr processpb.ProcessEvent_DataEvent_Stderr
	pty    processpb.ProcessEvent_DataEvent_Pty
}

func (m *dataMessage) of(ev process.Event) *processpb.ProcessEvent_Data {
	switch ev.Kind {
	case process.Stdout:
		m.stdout.Stdout, m.data.Output = ev.Data, &m.stdout
	case process.Stderr:
		m.stderr.Stderr, m.data.Output = ev.Data, &m.stderr
	default:
		m.pty.Pty, m.data.Output = ev.Data, &m.pty
	}
	m.event.Data = &m.data
	return &m.event
}

func endEvent(end process.End) *processpb.ProcessEvent_End {
	out := &processpb.ProcessEvent_EndEvent{ExitCode: int32(end.ExitCode), Exited: end.Exited, Status: end.Status}
	if !end.Exited || end.ExitCode != 0 {
		out.Error = &end.Status
	}
	return &processpb.ProcessEvent_End{End: out}
}

// clientGone is what an error of sending means: the client cannot hear of it any more.
func clientGone(err error) error {
	return fault.Wrap(err, fault.Canceled, "the client went away")
}
