package network

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// linksFile says what has gone over each link of the machine.
	linksFile = "/proc/net/dev"
	// countsAge is how long what it said is believed: those who ask for many slots one after
	// the other, twice a second, pay for one reading. A file for each link would cost ten
	// times as much.
	countsAge = 100 * time.Millisecond

	// Of a link's columns, those of the bytes; see proc_pid_net(5).
	columnReceived = 0
	columnSent     = 8
)

// Passed returns how many bytes have gone up from the guest and down to it since its slot
// was acquired or unparked: headers count, what a limit has dropped does not. It is up to
// 0.1 s old.
func (n *Network) Passed(slot Slot) (up, down uint64, err error) {
	if !slot.valid() {
		return 0, 0, fault.New(fault.InvalidRequest, "no network slot")
	}
	return n.counts.of(slot.Index)
}

// linkCounts remembers for a moment what has gone over the links of slots. The zero value is
// ready, and safe for concurrent use.
type linkCounts struct {
	mu    sync.Mutex
	at    time.Time
	known map[int]passed
}

// passed is what has gone over a link, as the guest sees it.
type passed struct{ up, down uint64 }

func (c *linkCounts) of(index int) (up, down uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.at) > countsAge {
		text, err := os.ReadFile(linksFile)
		if err != nil {
			return 0, 0, fmt.Errorf("read what has gone over links: %w", err)
		}
		if c.known == nil {
			c.known = map[int]passed{}
		}
		clear(c.known)
		if err := readCounts(text, c.known); err != nil {
			return 0, 0, fmt.Errorf("read %s: %w", linksFile, err)
		}
		c.at = now
	}
	one, ok := c.known[index]
	if !ok {
		return 0, 0, fault.New(fault.NotFound, "network slot %d has no link", index)
	}
	return one.up, one.down, nil
}

// readCounts reads linksFile. What the host's end of a link receives the guest has sent.
func readCounts(text []byte, into map[int]passed) error {
	for line := range bytes.Lines(text) {
		name, rest, found := bytes.Cut(bytes.TrimLeft(line, " "), []byte(":"))
		number, ours := strings.CutPrefix(string(name), linkPrefix)
		if !found || !ours {
			continue
		}
		index, err := strconv.Atoi(number)
		if err != nil {
			continue // another program's
		}
		var one passed
		column := 0
		for field := range bytes.FieldsSeq(rest) {
			switch column {
			case columnReceived:
				one.up, err = strconv.ParseUint(string(field), 10, 64)
			case columnSent:
				one.down, err = strconv.ParseUint(string(field), 10, 64)
			}
			if err != nil {
				return err
			}
			column++
		}
		if column <= columnSent {
			return fmt.Errorf("a line has %d columns", column)
		}
		into[index] = one
	}
	return nil
}
