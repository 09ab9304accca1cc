package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/wrenn-sandbox/wrenn/api"
)

func newPorts(a *app) *cobra.Command {
	return command(&cobra.Command{
		Use:   "ports ID",
		Short: "List the ports that servers in a sandbox listen on",
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := connect()
			if err != nil {
				return err
			}
			list, err := decode[api.PortList](s.api.ListPorts(cmd.Context(), args[0]))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), list.Ports)
			}
			var rows [][]string
			for _, p := range list.Ports {
				names := make([]string, len(p.Processes))
				for i, process := range p.Processes {
					names[i] = fmt.Sprintf("%s (%d)", process.Name, process.Pid)
				}
				rows = append(rows, []string{fmt.Sprint(p.Port), strings.Join(p.Addresses, ", "), strings.Join(names, ", "), p.URL})
			}
			return printTable(cmd.OutOrStdout(), []string{"PORT", "ADDRESS", "PROCESS", "URL"}, rows)
		},
	}, named(allArguments, takes(1, 1, "ports wants one sandbox's id")))
}

func newOpen(a *app) *cobra.Command {
	var printOnly bool
	cmd := command(&cobra.Command{
		Use:   "open ID PORT",
		Short: "Open a port of a sandbox in the browser",
		Long: `Prints the address of a port of a sandbox and, from a terminal on a desktop, opens it in the
browser. For a private sandbox the address works once, within five minutes: the browser that
opens it gets a cookie for that port, which is good for a day.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			port, err := strconv.ParseUint(args[1], 10, 16)
			if err != nil || port == 0 {
				return usageErrorf(cmd, "the port is %q and must be a number from 1 to 65535", args[1])
			}
			s, err := connect()
			if err != nil {
				return err
			}
			link, err := decode[api.PortLink](s.api.CreatePortLink(cmd.Context(), args[0], int(port)))
			if err != nil {
				return err
			}
			if a.json {
				return printJSON(cmd.OutOrStdout(), link)
			}
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), link.URL); err != nil {
				return err
			}
			out, ok := isFile(cmd.OutOrStdout())
			if printOnly || !ok || !term.IsTerminal(int(out.Fd())) {
				return nil
			}
			if err := browse(cmd.Context(), link.URL); err != nil {
				streamsOf(cmd).warn("no browser was opened: %v", err)
			}
			return nil
		},
	}, named(allArguments, takes(2, 2, "open wants a sandbox's id and a port")))
	cmd.Flags().BoolVar(&printOnly, "print", false, "only print the address")
	return cmd
}

// browserTime bounds how long a program may take to find a browser.
const browserTime = 10 * time.Second

// browse opens an address in the browser of this desktop. Where there is none it does
// nothing.
func browse(ctx context.Context, address string) error {
	program := os.Getenv("BROWSER")
	switch {
	case program != "":
	case runtime.GOOS == "darwin":
		program = "open"
	case os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != "":
		program = "xdg-open"
	default:
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, browserTime)
	defer cancel()
	return exec.CommandContext(ctx, program, address).Run()
}
