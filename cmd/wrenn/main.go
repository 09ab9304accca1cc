// Command wrenn is the whole of Wrenn in one program: the server that `wrenn up` starts
// and the client commands. It wires the floors together and holds no logic of its own.
package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/wrenn-sandbox/wrenn/internal/cli"
)

// version is set by the build.
var version = "dev"

func main() {
	root := cli.NewRoot(version)
	for _, cmd := range []*cobra.Command{newUpCommand(), newImageCommand()} {
		cmd.GroupID = cli.GroupMachine
		root.AddCommand(cmd)
	}
	os.Exit(cli.Execute(context.Background(), root, os.Args[1:]))
}
