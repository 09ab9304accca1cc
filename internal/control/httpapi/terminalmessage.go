package httpapi

import (
	"encoding/base64"
	"encoding/json"

	"github.com/wrenn-sandbox/wrenn/internal/control/sandbox"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// maxTerminalSide is the most columns or rows of a terminal.
const maxTerminalSide = 1<<16 - 1

// startTerminalMessage, connectMessage, inputMessage and resizeMessage are the forms of
// clientMessage when it is about a terminal.
type startTerminalMessage struct {
	Type string            `json:"type"`
	Cmd  string            `json:"cmd"`
	Args []string          `json:"args"`
	Envs map[string]string `json:"envs"`
	Cwd  string            `json:"cwd"`
	User string            `json:"user"`
	Tag  string            `json:"tag"`
	Cols *int64            `json:"cols"`
	Rows *int64            `json:"rows"`

	TimeoutSec int64 `json:"timeout_sec"`
}

type connectMessage struct {
	Type   string `json:"type"`
	Tag    string `json:"tag"`
	Replay *bool  `json:"replay"`
}

type inputMessage struct {
	Type string `json:"type"`
	Data string `json:"data"`
}

type resizeMessage struct {
	Type string `json:"type"`
	Cols *int64 `json:"cols"`
	Rows *int64 `json:"rows"`
}

// decodeTerminalMessage reads one message of a client that is about a terminal.
func decodeTerminalMessage(raw []byte) (m clientMessage, err error) {
	var bare bareMessage
	if err := json.Unmarshal(raw, &bare); err != nil {
		return clientMessage{}, messageFault(err)
	}
	m.kind = bare.Type
	switch bare.Type {
	case typeStart:
		m.start, err = decodeTerminalStart(raw)
	case typeConnect:
		m.connect, err = decodeConnect(raw)
	case typeInput:
		var in inputMessage
		if err := decodeStrictly(raw, &in); err != nil {
			return clientMessage{}, err
		}
		if m.data, err = base64.StdEncoding.DecodeString(in.Data); err != nil {
			err = fault.Wrap(err, fault.InvalidRequest, "field \"data\" is not base64")
		}
	case typeResize:
		var r resizeMessage
		if err := decodeStrictly(raw, &r); err != nil {
			return clientMessage{}, err
		}
		// A window that somebody makes too small is no reason to end what is shown in it.
		if m.size, m.refused = terminalSize(r.Cols, r.Rows); r.Cols == nil || r.Rows == nil {
			m.refused = fault.New(fault.InvalidRequest, "a resize needs both \"cols\" and \"rows\"")
		}
	case typeKill:
		err = decodeStrictly(raw, &bare)
	default:
		err = fault.New(fault.InvalidRequest, "there is no message type %q; there are start, connect, input, resize and kill", bare.Type)
	}
	if err != nil {
		return clientMessage{}, err
	}
	return m, nil
}

func decodeTerminalStart(raw []byte) (sandbox.Command, error) {
	var s startTerminalMessage
	if err := decodeStrictly(raw, &s); err != nil {
		return sandbox.Command{}, err
	}
	if err := checkTimeout(s.TimeoutSec); err != nil {
		return sandbox.Command{}, err
	}
	size, err := terminalSize(s.Cols, s.Rows)
	return sandbox.Command{
		Cmd: s.Cmd, Args: s.Args, Env: s.Envs, Cwd: s.Cwd, User: s.User, Tag: s.Tag, Timeout: seconds(s.TimeoutSec), Terminal: &size,
	}, err
}

func decodeConnect(raw []byte) (sandbox.Follow, error) {
	var c connectMessage
	if err := decodeStrictly(raw, &c); err != nil {
		return sandbox.Follow{}, err
	}
	if c.Tag == "" {
		return sandbox.Follow{}, fault.New(fault.InvalidRequest, "a connect needs the \"tag\" of the terminal")
	}
	// Who comes back to a terminal wants to see what is on it.
	return sandbox.Follow{Process: sandbox.Selector{Tag: c.Tag}, Terminal: true, Replay: c.Replay == nil || *c.Replay}, nil
}

// terminalSize reads the size of a terminal; what is absent is 0.
func terminalSize(cols, rows *int64) (sandbox.TerminalSize, error) {
	var sides [2]uint16
	for i, given := range []*int64{cols, rows} {
		switch {
		case given == nil:
		case *given < 1 || *given > maxTerminalSide:
			return sandbox.TerminalSize{}, fault.New(fault.InvalidRequest, "fields \"cols\" and \"rows\" must be 1 to %d", maxTerminalSide)
		default:
			sides[i] = uint16(*given)
		}
	}
	return sandbox.TerminalSize{Cols: sides[0], Rows: sides[1]}, nil
}
