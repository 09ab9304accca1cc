package cli

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

const (
	// patience is how long something may take before its progress is shown.
	patience = time.Second
	// redraw is the time between two pictures of a progress display.
	redraw = 100 * time.Millisecond
	// clearLine returns to the start of a terminal's line and erases it.
	clearLine = "\r\x1b[K"
)

// isTerminal reports whether a person looks at, or types into, a stream.
func isTerminal(stream any) bool {
	f, ok := isFile(stream)
	return ok && term.IsTerminal(int(f.Fd())) //nolint:gosec // a file descriptor is small
}

// spin shows on a terminal that something goes on, once it has taken longer than
// patience, until the returned function is called. It may be called more than once. Off a
// terminal nothing is shown.
func spin(w io.Writer, what string) (stop func()) {
	if !isTerminal(w) {
		return func() {}
	}
	quit, gone := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(gone)
		drawSpinner(w, what, quit)
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-gone
	})
}

func drawSpinner(w io.Writer, what string, quit <-chan struct{}) {
	frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	begun := time.Now()
	select {
	case <-quit:
		return
	case <-time.After(patience):
	}
	tick := time.NewTicker(redraw)
	defer tick.Stop()
	defer fmt.Fprint(w, clearLine)
	for i := 0; ; i++ {
		fmt.Fprintf(w, "%s%c %s… %ds", clearLine, frames[i%len(frames)], what, time.Since(begun)/time.Second)
		select {
		case <-quit:
			return
		case <-tick.C:
		}
	}
}

// meter counts the bytes of a transfer and shows them on a terminal, once it has taken
// longer than patience. It is for one goroutine.
type meter struct {
	w     io.Writer
	what  string
	total int64 // -1 when it is not known
	done  int64
	begun time.Time
	bar   *progressbar.ProgressBar
}

// newMeter returns a meter, or nil when nobody would see it. A nil meter counts nothing.
func newMeter(w io.Writer, what string, total int64) *meter {
	if !isTerminal(w) {
		return nil
	}
	return &meter{w: w, what: what, total: total, begun: time.Now()}
}

// Write counts what is written.
func (m *meter) Write(p []byte) (int, error) {
	m.done += int64(len(p))
	if m.bar == nil && time.Since(m.begun) < patience {
		return len(p), nil
	}
	if m.bar == nil {
		m.bar = progressbar.NewOptions64(m.total,
			progressbar.OptionSetWriter(m.w),
			progressbar.OptionSetDescription(printable(m.what)),
			progressbar.OptionShowBytes(true),
			progressbar.OptionThrottle(redraw),
			progressbar.OptionClearOnFinish(),
			progressbar.OptionFullWidth(),
			progressbar.OptionUseANSICodes(true),
		)
	}
	return len(p), m.bar.Set64(m.done)
}

// reader counts what is read from r.
func (m *meter) reader(r io.Reader) io.Reader {
	if m == nil {
		return r
	}
	return io.TeeReader(r, m)
}

// writer counts what is written to w.
func (m *meter) writer(w io.Writer) io.Writer {
	if m == nil {
		return w
	}
	return io.MultiWriter(w, m)
}

// stop takes the display away.
func (m *meter) stop() {
	if m != nil && m.bar != nil {
		_ = m.bar.Clear() // only a picture
	}
}
