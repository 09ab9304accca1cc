package process

import (
	"log/slog"
	"os"
	"syscall"
	"testing"
)

// BenchmarkExec compares a command run by a Manager with the least that a kernel needs.
func BenchmarkExec(b *testing.B) {
	b.Run("manager", func(b *testing.B) {
		m := NewManager(Config{Logger: slog.New(slog.DiscardHandler)})
		defer m.Close()
		spec := Spec{Cmd: "/bin/true", Dir: "/", Env: []string{"PATH=" + defaultPath}}
		for b.Loop() {
			_, sub, err := m.Start(b.Context(), spec)
			if err != nil {
				b.Fatal(err)
			}
			for ended := false; !ended; {
				ev, err := sub.Next(b.Context(), 0)
				if err != nil {
					b.Fatal(err)
				}
				ended = ev.Kind == Ended
			}
			sub.Close()
		}
	})
	b.Run("raw", func(b *testing.B) {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			b.Fatal(err)
		}
		defer null.Close()
		files := []uintptr{null.Fd(), null.Fd(), null.Fd()}
		for b.Loop() {
			pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Files: files})
			if err != nil {
				b.Fatal(err)
			}
			if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
				b.Fatal(err)
			}
		}
	})
}
