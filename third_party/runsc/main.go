// Command runsc is gVisor's OCI runtime, cut down to the subcommands that Wrenn's
// gVisor driver calls. It links gVisor's public command packages only and leaves out
// the embedded helper binaries, which makes it about a third of the size of the full
// build. It must not contain any logic of Wrenn's: the one subcommand of its own only
// joins two of gVisor's.
package main

import (
	"github.com/google/subcommands"
	"gvisor.dev/gvisor/runsc/cli"
	"gvisor.dev/gvisor/runsc/cmd"
	"gvisor.dev/gvisor/runsc/cmd/sentry/sentrycmd"
	"gvisor.dev/gvisor/runsc/cmd/util"
)

// Group names under which `runsc help` lists the subcommands.
const (
	lifecycle = "lifecycle"
	snapshot  = "snapshot"
	inspect   = "inspect"
	internal  = "internal use only"
)

func main() {
	cli.Run(nil, map[util.SubCommand]string{
		new(cmd.Create): lifecycle,
		new(cmd.Start):  lifecycle,
		new(cmd.Run):    lifecycle,
		new(cmd.Exec):   lifecycle,
		new(cmd.Kill):   lifecycle,
		new(cmd.Wait):   lifecycle,
		new(cmd.Delete): lifecycle,
		new(cmd.Pause):  lifecycle,
		new(cmd.Resume): lifecycle,

		new(cmd.Checkpoint):   snapshot,
		new(cmd.Restore):      snapshot,
		new(createAndRestore): snapshot,
		new(cmd.FSCheckpoint): snapshot,
		new(cmd.Tar):          snapshot,

		new(cmd.State):  inspect,
		new(cmd.List):   inspect,
		new(cmd.PS):     inspect,
		new(cmd.Events): inspect,
		new(cmd.Debug):  inspect,

		// The sentry, the gofer and the unmount helper are this binary, run again by itself.
		new(sentrycmd.Boot):   internal,
		new(cmd.Gofer):        internal,
		new(sentrycmd.Umount): internal,
	}, []subcommands.Command{new(cmd.Platforms)})
}
