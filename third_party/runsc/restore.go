package main

import (
	"context"
	"os"

	"github.com/google/subcommands"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
	"gvisor.dev/gvisor/runsc/flag"
)

// cueFD is the file descriptor that createAndRestore reads its cue from. It is not one of
// the first three: those become the sandbox's.
const cueFD = 3

// createAndRestore is `runsc create` and `runsc restore` in one process, which saves the
// start of a second one. Between the two it waits for a byte on cueFD, so that its caller
// can look at the checkpoint meanwhile; when that ends without one, nothing is restored.
type createAndRestore struct{ cmd.Restore }

func (*createAndRestore) Name() string { return "create-and-restore" }

func (*createAndRestore) Synopsis() string {
	return "create a container and, on cue, restore a saved state into it"
}

func (*createAndRestore) Usage() string {
	return "create-and-restore [flags] <container id> - create a container, wait for a byte on file descriptor 3, restore into it.\n"
}

func (c *createAndRestore) Execute(ctx context.Context, f *flag.FlagSet, args ...any) subcommands.ExitStatus {
	cue := os.NewFile(cueFD, "cue")
	if cue == nil {
		return util.Errorf("file descriptor %d is not open", cueFD)
	}
	if status := c.Create.Execute(ctx, f, args...); status != subcommands.ExitSuccess {
		return status
	}
	if _, err := cue.Read(make([]byte, 1)); err != nil {
		return util.Errorf("waiting for the cue to restore: %v", err)
	}
	return c.Restore.Execute(ctx, f, args...)
}
