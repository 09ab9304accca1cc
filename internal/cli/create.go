package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/wrenn-sandbox/wrenn/api"
	"github.com/wrenn-sandbox/wrenn/internal/fault"
)

const (
	// createTimeout bounds a creation that nothing else ends.
	createTimeout = 5 * time.Minute
	// destroyTimeout bounds the destruction of a sandbox on the way out.
	destroyTimeout = 30 * time.Second
)

// sandboxFlags say what sandbox to create.
type sandboxFlags struct {
	template  string
	vcpus     int
	memory    sizeFlag
	disk      sizeFlag
	env       pairsFlag
	user      string
	metadata  pairsFlag
	idle      secondsFlag
	deadline  secondsFlag
	wait      secondsFlag
	onTimeout string

	private, autoResume bool
	maskHost            string
}

// shape registers the flags that say how large a sandbox is and what it is made from.
func (f *sandboxFlags) shape(flags *pflag.FlagSet) {
	flags.StringVarP(&f.template, "template", "t", "", "what the sandbox is made from, such as a snapshot (default base)")
	flags.IntVar(&f.vcpus, "vcpus", 0, "virtual processors (default 1)")
	flags.VarP(&f.memory, "memory", "m", "memory, such as 512M or 2G (default 512M)")
	flags.Var(&f.disk, "disk", "how much it may write to its disk (default 10G)")
	flags.VarP(&f.env, "env", "e", "environment variable; may be repeated")
	flags.StringVarP(&f.user, "user", "u", "", "user that commands run as (default the template's)")
	flags.Var(&f.metadata, "metadata", "label to find the sandbox by; may be repeated")
}

// request checks what the flags alone can tell; the server checks the rest.
func (f *sandboxFlags) request(cmd *cobra.Command) (api.CreateSandboxRequest, error) {
	if cmd.Flags().Changed("vcpus") && f.vcpus < 1 {
		return api.CreateSandboxRequest{}, usageErrorf(cmd, "--vcpus must be at least 1")
	}
	var public *bool
	if f.private {
		public = new(bool)
	}
	return api.CreateSandboxRequest{
		AllowPublicTraffic: public, AutoResume: f.autoResume, MaskRequestHost: f.maskHost,
		Template: f.template, Vcpus: f.vcpus, MemoryMb: int(f.memory), DiskSizeMb: int(f.disk),
		Env: f.env, User: f.user, Metadata: f.metadata,
		TimeoutSec: int64(f.idle), DeadlineSec: int64(f.deadline), OnTimeout: api.OnTimeout(f.onTimeout),
		WaitSec: int64(f.wait),
	}, nil
}

func newCreate(a *app) *cobra.Command {
	var f sandboxFlags
	cmd := command(&cobra.Command{
		Use:   "create [flags]",
		Short: "Create a sandbox and print its id",
		Example: `  wrenn create --memory 2G --metadata project=demo
  wrenn create --template web-ready --wait 30s`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := f.request(cmd)
			if err != nil {
				return err
			}
			s, err := connect()
			if err != nil {
				return err
			}
			sb, err := s.create(cmd.Context(), want, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), sb)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), sb.ID)
			return err
		},
	}, takes(0, 0, "create takes no arguments; did you mean `wrenn run`?"))
	f.shape(cmd.Flags())
	cmd.Flags().Var(&f.idle, "timeout", "idle timeout, such as 15m (default none)")
	cmd.Flags().Var(&f.deadline, "deadline", "how long it may run however busy it is, such as 2h (default for ever)")
	cmd.Flags().StringVar(&f.onTimeout, "on-timeout", "", "what happens then: pause or kill (default pause)")
	cmd.Flags().BoolVar(&f.private, "private", false, "let nobody reach its ports without its traffic token or a link from wrenn open")
	cmd.Flags().BoolVar(&f.autoResume, "auto-resume", false, "resume it when it is paused and a request for one of its ports comes")
	cmd.Flags().StringVar(&f.maskHost, "mask-host", "", "Host header that its servers get, such as 'localhost:${PORT}' (default the client's)")
	addWait(cmd, &f.wait)
	return cmd
}

// create makes a sandbox. When ctx ends meanwhile it is destroyed again: a request that
// is merely cut off would leave nobody who knows the sandbox's id.
func (s *server) create(ctx context.Context, want api.CreateSandboxRequest, progress io.Writer) (api.Sandbox, error) {
	if err := ctx.Err(); err != nil {
		return api.Sandbox{}, err
	}
	stop := spin(progress, "creating a sandbox")
	defer stop()
	defer context.AfterFunc(ctx, func() {
		stop()
		streams{err: progress}.warn("stopped; waiting for the sandbox to be made, to destroy it")
	})()
	detached, cancel := context.WithTimeout(context.WithoutCancel(ctx), createTimeout+time.Duration(want.WaitSec)*time.Second)
	defer cancel()
	sb, err := decode[api.Sandbox](s.api.CreateSandbox(detached, want))
	if err != nil {
		return api.Sandbox{}, fmt.Errorf("create a sandbox: %w", err)
	}
	if err := ctx.Err(); err != nil {
		if undo := s.destroy(ctx, sb.ID); undo != nil {
			return api.Sandbox{}, undo
		}
		return api.Sandbox{}, err
	}
	return sb, nil
}

// destroy removes a sandbox even when ctx has ended. One that is gone already is no
// error.
func (s *server) destroy(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyTimeout)
	defer cancel()
	err := discard(s.api.DeleteSandbox(ctx, id))
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("sandbox %s could not be destroyed, try `wrenn rm %s`: %w", id, id, err)
	}
	return nil
}
