package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/wrenn-sandbox/wrenn/internal/host/image"
)

func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "image", Short: "Work with the images of this machine"}
	var dir string
	build := &cobra.Command{
		Use:   "build",
		Short: "Build the base image, unless it is there and current",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			dir, err := filepath.Abs(dir)
			if err != nil {
				return err
			}
			images, err := image.Open(dir)
			if err != nil {
				return err
			}
			show, end := imageProgress(cmd.ErrOrStderr())
			base, err := images.EnsureBase(ctx, show)
			end()
			if err != nil {
				return err
			}
			if wantsJSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"name": base.Name, "path": base.Path, "size_bytes": base.SizeBytes})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s  %s  %d MiB\n", base.Name, base.Path, base.SizeBytes/mib)
			return err
		},
	}
	build.Flags().StringVar(&dir, "image-dir", filepath.Join(defaultDataDir, "images"), "where images are kept")
	cmd.AddCommand(build)
	return cmd
}

// imageProgress returns what shows the progress of building an image: a bar on a
// terminal, a line for each step elsewhere. end is called when it is over.
func imageProgress(w io.Writer) (show func(image.Progress), end func()) {
	if f, ok := w.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		last := ""
		return func(p image.Progress) {
			if p.Step != last {
				last = p.Step
				_, _ = fmt.Fprintf(w, "base image: %s\n", p.Step) // progress is no result: a lost line is no error
			}
		}, func() {}
	}
	var bar *progressbar.ProgressBar
	return func(p image.Progress) {
			if bar == nil {
				bar = progressbar.NewOptions(p.Total,
					progressbar.OptionSetWriter(w), progressbar.OptionClearOnFinish(), progressbar.OptionSetWidth(30),
					progressbar.OptionSetPredictTime(false), progressbar.OptionSetElapsedTime(true))
			}
			bar.Describe("base image: " + p.Step)
			_ = bar.Set(p.Done) // drawing a bar cannot fail in a way that matters
		}, func() {
			if bar != nil {
				_ = bar.Finish()
			}
		}
}
