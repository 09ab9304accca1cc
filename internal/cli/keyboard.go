package cli

import (
	"io"
	"sync"
)

// The keys that detach from a terminal, one after the other, as a person types them and as
// they come.
const (
	detachKeys   = "Ctrl-P Ctrl-Q"
	detachFirst  = 0x10
	detachSecond = 0x11
)

// maxTyped is how much input may wait for a program that does not read, in bytes.
const maxTyped = 1 << 20

// keyboard is what a person types until it is sent. It is safe for concurrent use.
type keyboard struct {
	// ready holds a token while there may be something to take.
	ready chan struct{}
	// detached is closed when the person has typed detachKeys, or is gone.
	detached chan struct{}

	mu     sync.Mutex
	room   sync.Cond
	typed  []byte
	prefix bool // the first of detachKeys has come and was not passed on
}

func newKeyboard() *keyboard {
	k := &keyboard{ready: make(chan struct{}, 1), detached: make(chan struct{})}
	k.room.L = &k.mu
	return k
}

// read takes what is typed until the person detaches or in ends. A read of a terminal
// cannot be broken off, so it may go on until the program ends.
func (k *keyboard) read(in io.Reader) {
	defer close(k.detached)
	const chunk = 32 << 10 // bytes; a paste comes in pieces of a few KiB
	buf := make([]byte, chunk)
	for {
		n, err := in.Read(buf)
		if n > 0 && k.put(buf[:n]) {
			return
		}
		if err != nil {
			return
		}
	}
}

// put adds what was typed and reports whether the person detaches.
func (k *keyboard) put(keys []byte) (detach bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for len(k.typed) > maxTyped {
		k.room.Wait()
	}
	for _, key := range keys {
		if k.prefix {
			k.prefix = false
			if key == detachSecond {
				detach = true
				break
			}
			k.typed = append(k.typed, detachFirst)
		}
		if key == detachFirst {
			k.prefix = true
			continue
		}
		k.typed = append(k.typed, key)
	}
	if len(k.typed) > 0 {
		select {
		case k.ready <- struct{}{}:
		default:
		}
	}
	return detach
}

// take returns at most limit bytes of what was typed, nil when there is nothing.
func (k *keyboard) take(limit int) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := min(limit, len(k.typed))
	taken := k.typed[:n:n]
	if k.typed = k.typed[n:]; len(k.typed) == 0 {
		k.typed = nil
	}
	k.room.Broadcast()
	return taken
}
