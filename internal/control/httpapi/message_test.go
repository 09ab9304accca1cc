package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

func TestBadMessages(t *testing.T) {
	for raw, want := range map[string]string{
		`nonsense`:                         "not a JSON object",
		`[]`:                               "not a JSON object",
		`{"type":"jump"}`:                  `no message type "jump"`,
		`{"type":"start","cmd":1}`:         `field "cmd" of the message cannot be a number`,
		`{"type":"start","cmd":"x","z":1}`: `has no field "z"`,
		`{"type":"stop","data":"x"}`:       `has no field "data"`,
		`{"type":"start","cmd":"x","timeout_sec":-1}`:            `"timeout_sec" must be`,
		`{"type":"start","cmd":"x","timeout_sec":9999999999999}`: `"timeout_sec" must be`,
		`{"type":"stdin","data":"%","encoding":"base64"}`:        `not base64`,
		`{"type":"stdin","data":"x","encoding":"latin1"}`:        `"encoding" must be`,
	} {
		if _, err := decodeCommandMessage([]byte(raw)); !fault.Is(err, fault.InvalidRequest) || !strings.Contains(fault.MessageOf(err), want) {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func FuzzDecodeCommandMessage(f *testing.F) {
	for _, seed := range []string{
		`{"type":"start","cmd":"sh","args":["-c","x"],"envs":{"A":"1"},"cwd":"/","user":"u","timeout_sec":3,"tag":"t","stdin":true}`,
		`{"type":"stdin","data":"YQ==","encoding":"base64"}`, `{"type":"stdin","data":"ö"}`,
		`{"type":"stdin_close"}`, `{"type":"stop"}`, `{"type":1}`, `{`, `null`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := decodeCommandMessage(raw)
		if err != nil {
			if !fault.Is(err, fault.InvalidRequest) {
				t.Fatalf("not the client's error: %v", err)
			}
			return
		}
		switch m.kind {
		case typeStart, typeStdin, typeStdinClose, typeStop:
		default:
			t.Fatalf("type %q was taken", m.kind)
		}
		if m.start.Timeout < 0 {
			t.Fatal("a negative timeout")
		}
	})
}

// FuzzJoiner cuts a stream into chunks and has every one of them, whatever the cuts,
// arrive whole, in order and without a character cut in two.
func FuzzJoiner(f *testing.F) {
	f.Add([]byte("aö€😀z"), uint8(1))
	f.Add([]byte("\xf0\x9f\x98"), uint8(2))
	f.Add([]byte("\xff\xc3\xc3\xb6\x80"), uint8(1))
	f.Add(bytes.Repeat([]byte("😀"), 40), uint8(3))
	f.Fuzz(func(t *testing.T, stream []byte, step uint8) {
		n := int(step)%7 + 1
		var j joiner
		var got []byte
		take := func(piece []byte) {
			if len(piece) == 0 {
				return
			}
			m := decodeOutput(t, new(commandDialect).message(typeStdout, piece))
			back := []byte(m.Data)
			if m.Encoding == encodingBase64 {
				if utf8.Valid(stream) {
					t.Fatalf("valid text was sent as base64: %q of %q", piece, stream)
				}
				var err error
				if back, err = base64.StdEncoding.DecodeString(m.Data); err != nil {
					t.Fatal(err)
				}
			} else if !utf8.Valid(back) {
				t.Fatalf("sent as text: %q", back)
			}
			got = append(got, back...)
		}
		for rest := stream; len(rest) > 0; {
			k := min(n, len(rest))
			// A copy, so that a joiner that keeps the caller's buffer is found out.
			chunk := bytes.Clone(rest[:k])
			take(j.push(chunk))
			clear(chunk)
			rest = rest[k:]
			if len(j.held) >= utf8.UTFMax {
				t.Fatalf("%d bytes are held back", len(j.held))
			}
		}
		take(j.flush())
		if !bytes.Equal(got, stream) {
			t.Fatalf("sent %q, arrived %q", stream, got)
		}
	})
}

// outputMessage is a message of output as a client reads it.
type outputMessage struct{ Type, Data, Encoding string }

func decodeOutput(t testing.TB, raw []byte) outputMessage {
	t.Helper()
	var m outputMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatalf("%v: %.200q", err, raw)
	}
	return m
}
