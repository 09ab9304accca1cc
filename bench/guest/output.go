package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	processpb "github.com/wrenn-sandbox/wrenn/proto/guest/process"
)

// What the output of a command must reach, in MB/s.
const (
	binaryOutputTarget = 400
	jsonOutputTarget   = 150
)

const (
	binaryOutputBytes = 512 << 20
	jsonOutputBytes   = 128 << 20
)

// codec is an encoding of the protocol's streams. The client looks only for how much output
// a message carries: decoding it would cost the machine more than the daemon does.
type codec struct {
	name    string
	mime    string
	encode  func(proto.Message) ([]byte, error)
	payload func([]byte) (int64, error)
	bytes   int64
	target  float64
}

var codecs = []codec{
	{"binary", "application/connect+proto", proto.Marshal, binaryPayload, binaryOutputBytes, binaryOutputTarget},
	{"JSON", "application/connect+json", protojson.Marshal, jsonPayload, jsonOutputBytes, jsonOutputTarget},
}

// printing is a command that prints so much.
func printing(amount int64) *processpb.StartRequest {
	const block = 1 << 20
	return &processpb.StartRequest{
		Process: &processpb.ProcessConfig{
			Cmd: "/bin/dd", Args: []string{"if=/dev/zero", "bs=1M", fmt.Sprintf("count=%d", amount/block), "status=none"},
		},
		Stdin: new(bool),
	}
}

// output measures how fast a command's output comes.
func (b *bench) output(ctx context.Context) error {
	for _, codec := range codecs {
		reads := []func() error{func() error { return readPipe(ctx, codec.bytes) }}
		for _, d := range b.daemons() {
			reads = append(reads, func() error { return d.readOutput(ctx, codec) })
		}
		took := make([]times, len(reads))
		for round := range b.rounds {
			for _, i := range turns(round, len(reads)) {
				began := time.Now()
				if err := reads[i](); err != nil {
					return err
				}
				took[i] = append(took[i], time.Since(began))
			}
		}
		raw, all := took[0], took[1:]
		var speeds []float64
		for _, t := range all {
			speeds = append(speeds, t.speed(codec.bytes))
		}
		r := row{
			what: "output of a command, " + codec.name + ", MB/s", raw: compare("%.0f", speeds[0], raw.speed(codec.bytes)),
			target: fmt.Sprintf("≥ %g", codec.target), verdict: verdict(speeds[0] >= codec.target),
		}
		r.beside("%.0f", speeds, higher)
		b.table.add(r)
	}
	return nil
}

// readPipe is the raw peer: the same command, its output read from a pipe.
func readPipe(ctx context.Context, amount int64) error {
	start := printing(amount).GetProcess()
	cmd := exec.CommandContext(ctx, start.GetCmd(), start.GetArgs()...)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{pipe}, make([]byte, clientBuffer))
	if err := first(err, cmd.Wait()); err != nil {
		return err
	}
	if n != amount {
		return fmt.Errorf("%d of %d bytes came", n, amount)
	}
	return nil
}

func (d *daemon) readOutput(ctx context.Context, c codec) error {
	var total int64
	err := d.follow(ctx, c, printing(c.bytes), func(_ uint32, n int64) { total += n })
	if err == nil && total != c.bytes {
		err = fmt.Errorf("%d of %d bytes came", total, c.bytes)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.binary, err)
	}
	return nil
}

// Parts of the framing of a stream: flags, length, message.
const (
	frameHeader = 5
	endFlag     = 0x02
)

// follow starts a command and tells of every message how much output it carries; the first
// one tells the pid.
func (d *daemon) follow(ctx context.Context, c codec, start *processpb.StartRequest, each func(pid uint32, n int64)) error {
	message, err := c.encode(start)
	if err != nil {
		return err
	}
	body := binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message)))
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url("/process.Process/Start"), bytes.NewReader(append(body, message...)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", c.mime)
	request.Header.Set("Connect-Protocol-Version", "1")
	response, err := d.client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("start: %s", response.Status)
	}
	var header [frameHeader]byte
	frame := make([]byte, 0, clientBuffer)
	for i := 0; ; i++ {
		if _, err := io.ReadFull(response.Body, header[:]); err != nil {
			return err
		}
		size := int(binary.BigEndian.Uint32(header[1:]))
		if size > cap(frame) {
			frame = make([]byte, 0, size)
		}
		frame = frame[:size]
		if _, err := io.ReadFull(response.Body, frame); err != nil {
			return err
		}
		if header[0]&endFlag != 0 {
			return endOf(frame)
		}
		if i == 0 {
			pid, err := startedAs(c, frame)
			if err != nil {
				return err
			}
			each(pid, 0)
			continue
		}
		n, err := c.payload(frame)
		if err != nil {
			return err
		}
		each(0, n)
	}
}

// endOf is what the last message of a stream says.
func endOf(frame []byte) error {
	var end struct {
		Error *struct{ Code, Message string }
	}
	if err := json.Unmarshal(frame, &end); err != nil {
		return err
	}
	if end.Error != nil {
		return fmt.Errorf("%s: %s", end.Error.Code, end.Error.Message)
	}
	return nil
}

func startedAs(c codec, frame []byte) (uint32, error) {
	decode := proto.Unmarshal
	if c.mime == codecs[1].mime {
		decode = protojson.Unmarshal
	}
	var message processpb.StartResponse
	if err := decode(frame, &message); err != nil {
		return 0, err
	}
	if message.GetEvent().GetStart() == nil {
		return 0, errors.New("the stream does not begin with a start")
	}
	return message.GetEvent().GetStart().GetPid(), nil
}

// binaryPayload finds the output of a message: the event, its data, their stdout.
func binaryPayload(frame []byte) (int64, error) {
	const event, data, stdout = 1, 2, 1
	for _, want := range []protowire.Number{event, data, stdout} {
		number, kind, n := protowire.ConsumeTag(frame)
		if n < 0 || kind != protowire.BytesType {
			return 0, errors.New("a message is not what the contract says")
		}
		if number != want {
			return 0, nil // another kind of event
		}
		if frame, n = protowire.ConsumeBytes(frame[n:]); n < 0 {
			return 0, protowire.ParseError(n)
		}
	}
	return int64(len(frame)), nil
}

// jsonPayload finds the same in JSON, where the output is the one long string.
func jsonPayload(frame []byte) (int64, error) {
	_, rest, found := bytes.Cut(frame, []byte(`"stdout"`))
	if !found {
		return 0, nil // another kind of event
	}
	open := bytes.IndexByte(rest, '"')
	if open < 0 {
		return 0, errors.New("a message is not what the contract says")
	}
	rest = rest[open+1:]
	closing := bytes.IndexByte(rest, '"')
	if closing < 0 {
		return 0, errors.New("a message is not what the contract says")
	}
	text := rest[:closing]
	padding := bytes.Count(text[max(0, len(text)-2):], []byte("="))
	return int64(base64.StdEncoding.DecodedLen(len(text)) - padding), nil
}
