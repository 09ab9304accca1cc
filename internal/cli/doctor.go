package cli

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

// verdict is what doctor thinks of one thing.
type verdict string

const (
	good    verdict = "ok"
	poor    verdict = "warning" // works, but not well
	lacking verdict = "missing" // does not work without it
)

// finding is one line of doctor's answer.
type finding struct {
	Name   string  `json:"name"`
	Status verdict `json:"status"`
	Detail string  `json:"detail"`
	// Fix says how to get what lacks; empty when all is well.
	Fix string `json:"fix,omitempty"`
}

// diagnosis is what `wrenn doctor --json` prints.
type diagnosis struct {
	OK     bool      `json:"ok"`
	Checks []finding `json:"checks"`
}

func newDoctor(a *app) *cobra.Command {
	dataDir := "/var/lib/wrenn"
	cmd := command(&cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine lacks to run Wrenn, and how to get it",
		RunE: func(cmd *cobra.Command, _ []string) error {
			stop := spin(cmd.ErrOrStderr(), "looking at this machine")
			d := diagnose(cmd.Context(), thisMachine(dataDir))
			stop()
			if a.json {
				if err := printJSON(cmd.OutOrStdout(), d); err != nil {
					return err
				}
			} else if err := d.print(cmd); err != nil {
				return err
			}
			if !d.OK {
				return &statusError{code: exitFindings}
			}
			return nil
		},
	}, takes(0, 0, "doctor takes no arguments"))
	cmd.Flags().StringVar(&dataDir, "data-dir", dataDir, "where sandboxes are to be kept")
	return cmd
}

func diagnose(ctx context.Context, m *machine) diagnosis {
	d := diagnosis{OK: true}
	for _, check := range []func(context.Context) finding{
		m.system, m.privilege, m.runsc, m.envd,
		m.program("mmdebstrap", "mmdebstrap"), m.program("mkfs.erofs", "erofs-utils"),
		m.firewall, m.forwarding, m.cgroups, m.disk, m.memory, m.server,
	} {
		found := check(ctx)
		d.OK = d.OK && found.Status != lacking
		d.Checks = append(d.Checks, found)
	}
	return d
}

func (d diagnosis) print(cmd *cobra.Command) error {
	var rows [][]string
	for _, f := range d.Checks {
		rows = append(rows, []string{f.Name, string(f.Status), f.Detail})
	}
	out := cmd.OutOrStdout()
	if err := printTable(out, []string{"CHECK", "STATUS", "DETAIL"}, rows); err != nil {
		return err
	}
	for _, f := range d.Checks {
		if f.Fix != "" {
			if _, err := fmt.Fprintf(out, "\n%s: %s\n", f.Name, f.Fix); err != nil {
				return err
			}
		}
	}
	closing := "\nThis machine can run Wrenn."
	if !d.OK {
		closing = "\nThis machine cannot run Wrenn yet."
	}
	_, err := fmt.Fprintln(out, closing)
	return err
}

// server asks the server that the client commands would talk to. A machine that runs none
// yet is fine.
func (m *machine) server(ctx context.Context) finding {
	const name = "server"
	s, err := connect()
	switch {
	case fault.Is(err, fault.InvalidRequest):
		return finding{name, good, "none is known yet; `wrenn up` starts one", ""}
	case err != nil:
		return finding{name, poor, fault.MessageOf(err), "set WRENN_BASE_URL and WRENN_API_KEY, or start `wrenn up`"}
	}
	ctx, cancel := context.WithTimeout(ctx, serverPatience)
	defer cancel()
	if err := discard(s.api.Readyz(ctx)); err != nil {
		return finding{name, poor, fault.MessageOf(err), "start it with `wrenn up`, or look into its log"}
	}
	return finding{name, good, "ready at " + s.at.APIURL, ""}
}

// serverPatience bounds how long doctor waits for the server.
const serverPatience = 5 * time.Second
