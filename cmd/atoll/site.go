package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// site is the group of commands that change who takes part.
func (c *cli) site() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "site",
		Short: "list the sites, add one to a running deployment, remove one, or forget one that is gone for good",
		Long: `The members of a deployment stand in its ownership document. A site that the spec names and that is no member owns
nothing, takes over nothing, and nothing is kept for it. Every command may be repeated: it goes on where it ended.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(c.siteList(), c.siteAdd(), c.siteRemove(), c.siteForget())
	return cmd
}

func (c *cli) siteList() *cobra.Command {
	var op *operator
	cmd := &cobra.Command{
		Use:   "list",
		Short: "the sites of the spec and of the deployment, and what each of them has",
		Long: `A site is a member, is joining (atoll site add goes on with it), or is none: the spec names it and the deployment does not,
or the deployment still has it and the spec does not.`,
		Example: `  atoll site list
  atoll site list --json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := c.load()
			if err != nil {
				return err
			}
			client, err := op.client(cmd.Context(), s)
			if err != nil {
				return err
			}
			defer client.Close()
			st, err := client.Status(cmd.Context(), false)
			if err != nil {
				return err
			}
			list := listSites(s.FullSites(), st)
			if c.json {
				return printJSON(cmd.OutOrStdout(), list)
			}
			return printSites(cmd.OutOrStdout(), list)
		},
	}
	op = operatorFlags(cmd)
	return cmd
}

// siteRow is one site as `atoll site list` shows it.
type siteRow struct {
	Site    topo.SiteID     `json:"site"`
	Member  string          `json:"member"` // yes, joining, no
	Spec    bool            `json:"spec"`   // the spec names it
	Buckets int             `json:"buckets"`
	Lease   api.LeaseStatus `json:"lease"`
	LagMS   int64           `json:"lag_ms"` // the most that it is behind a member; -1: not known
	Error   string          `json:"error,omitempty"`
}

func listSites(spec []topo.SiteID, st api.Status) []siteRow {
	var members []topo.Member
	buckets := map[topo.SiteID]int{}
	if o := st.Ownership; o != nil {
		members = o.Members
		for _, k := range o.Keyspaces {
			for _, owner := range k.Owners {
				buckets[owner.Site] += owner.Count
			}
		}
	}
	all := slices.Clone(spec)
	for _, m := range members {
		all = append(all, m.Site)
	}
	slices.Sort(all)
	out := []siteRow{}
	for _, site := range slices.Compact(all) {
		row := siteRow{Site: site, Member: "no", Spec: slices.Contains(spec, site), Buckets: buckets[site], LagMS: -1, Error: "its agent was not asked"}
		i := slices.IndexFunc(members, func(m topo.Member) bool { return m.Site == site })
		switch {
		case len(members) == 0 && st.Ownership != nil, i >= 0 && !members[i].Joining:
			row.Member = "yes"
		case i >= 0:
			row.Member = "joining"
		}
		for _, s := range st.Sites {
			if s.Site == site {
				row.Lease, row.Error, row.LagMS = s.Lease, s.Error, mostLag(s)
			}
		}
		out = append(out, row)
	}
	return out
}

// mostLag is how far a site is behind the one that it is furthest behind; -1 where one of them is not known.
func mostLag(s api.SiteStatus) int64 {
	most := int64(-1)
	for _, l := range s.Links {
		switch {
		case l.Target != s.Site:
		case l.LagMS < 0:
			return -1
		default:
			most = max(most, l.LagMS)
		}
	}
	return most
}

func printSites(out io.Writer, list []siteRow) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "SITE\tMEMBER\tBUCKETS\tLEASE\tLAG\t\n")
	for _, s := range list {
		note := oneLine(s.Error)
		if !s.Spec {
			note = strings.TrimPrefix(note+"; not in this spec", "; ")
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%s\t%s\n", s.Site, s.Member, s.Buckets, leaseText(s.Lease), lagText(s.LagMS), note)
	}
	return w.Flush()
}

// memberFlags are what the commands have in common.
func memberFlags(cmd *cobra.Command, req *api.MemberRequest, op *operator) {
	flags := cmd.Flags()
	flags.StringVar(&req.Why, "why", "", "reason, for the record")
	flags.BoolVar(&req.DryRun, "dry-run", false, "check whether it could start; change nothing")
	flags.StringVar(&op.as, "as", "", "certificate to use, such as operator-kim (default: the only operator certificate in the pki folder)")
}

func (c *cli) siteAdd() *cobra.Command {
	req, op, from := api.MemberRequest{Do: api.MemberAdd}, &operator{}, ""
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "fill a new site from another one and take it in",
		Long: `Before: name the site in the spec, issue its certificate, run atoll apply at its database, give every site the new
spec and restart the agents one after another, then start the new site. This command, asked of the new site's agent, copies
another site into it while writes go on, waits until every member keeps for it what it lacks, and until it has what they
had; from then on it may own and take over.`,
		Example: `  atoll site add d --dry-run
  atoll site add d --from b`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Site, req.From, op.at = topo.SiteID(args[0]), topo.SiteID(from), args[0]
			return c.changeMember(cmd, op, req)
		},
	}
	memberFlags(cmd, &req, op)
	cmd.Flags().StringVar(&from, "from", "", "the site to copy (default: the first by name)")
	return cmd
}

func (c *cli) siteRemove() *cobra.Command {
	req, op := api.MemberRequest{Do: api.MemberRemove}, &operator{}
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "let a site go that owns nothing, losing nothing",
		Long: `Refused while the site owns buckets (move them with atoll switch) or while its last failover is not settled. It waits
until every other member has all of the site's changes, writes the members without it, and has the others drop what they
keep of it and for it. Stop its applications first: what they write to shared tables afterwards goes nowhere. When it is
done, stop the site's agents, take it out of the spec everywhere, and run the command once more: its lease goes then.`,
		Example: `  atoll switch --keyspace users --buckets all --to b
  atoll site remove c --dry-run
  atoll site remove c --why "lease of the data centre ends"`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Site = topo.SiteID(args[0])
			return c.changeMember(cmd, op, req)
		},
	}
	memberFlags(cmd, &req, op)
	return cmd
}

func (c *cli) siteForget() *cobra.Command {
	req, op, accept := api.MemberRequest{Do: api.MemberForget}, &operator{}, false
	cmd := &cobra.Command{
		Use:   "forget NAME",
		Short: "give up a site that was lost and never comes back",
		Long: `What the site had committed and no other site has received is lost with it. The command shows the estimate of its last
failover and asks for the site's name. It is refused while an agent of the site renews its lease, while the site owns
buckets (atoll failover first), and until the others have the same of its changes, which they take from each other. If the
site comes back after all, it stays closed and outside, and can only be taken in as a new one: atoll site add.`,
		Example: `  atoll site forget c --dry-run
  atoll site forget c --why "flooded"
  atoll site forget c --accept-loss         # in a script`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Site = topo.SiteID(args[0])
			if req.DryRun || accept {
				return c.changeMember(cmd, op, req)
			}
			return c.forgetAsked(cmd, op, req)
		},
	}
	memberFlags(cmd, &req, op)
	cmd.Flags().BoolVar(&accept, "accept-loss", false, "do not ask: what only this site had is given up")
	return cmd
}

// agentBut is an agent of another site than the one that a command is about.
func (c *cli) agentBut(cmd *cobra.Command, op *operator, site topo.SiteID) (*api.Client, error) {
	s, err := c.load()
	if err != nil {
		return nil, err
	}
	if op.at != "" {
		return op.client(cmd.Context(), s)
	}
	var failures []error
	for _, other := range slices.DeleteFunc(s.FullSites(), func(id topo.SiteID) bool { return id == site }) {
		client, err := op.agentOf(cmd.Context(), s, other)
		if err == nil {
			return client, nil
		}
		failures = append(failures, err)
	}
	return nil, fmt.Errorf("no agent of another site answers; is `atoll up` running?\n%w", errors.Join(failures...))
}

func (c *cli) changeMember(cmd *cobra.Command, op *operator, req api.MemberRequest) error {
	client, err := c.agentBut(cmd, op, req.Site)
	if err != nil {
		return err
	}
	defer client.Close()
	answer, err := client.ChangeMember(cmd.Context(), req)
	if err != nil {
		return err
	}
	if !req.DryRun || c.json || req.Do != api.MemberForget {
		return c.reportMember(cmd, answer)
	}
	return printLoss(cmd, client, answer)
}

// forgetAsked shows what will be lost, and asks for the site's name.
func (c *cli) forgetAsked(cmd *cobra.Command, op *operator, req api.MemberRequest) error {
	client, err := c.agentBut(cmd, op, req.Site)
	if err != nil {
		return err
	}
	defer client.Close()
	look := req
	look.DryRun = true
	answer, err := client.ChangeMember(cmd.Context(), look)
	if err != nil {
		return err
	}
	if err := printLoss(cmd, client, answer); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "type the name of the site to give that up: ")
	line, err := bufio.NewReader(cmd.InOrStdin()).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if strings.TrimSpace(line) != string(req.Site) {
		return fmt.Errorf("%q is not %q: nothing was changed", strings.TrimSpace(line), req.Site)
	}
	answer, err = client.ChangeMember(cmd.Context(), req)
	if err != nil {
		return err
	}
	return c.reportMember(cmd, answer)
}

// printLoss says what goes with a site.
func printLoss(cmd *cobra.Command, client *api.Client, a api.MemberAnswer) error {
	out := cmd.OutOrStdout()
	if a.Handover == "" {
		fmt.Fprintf(out, "site %s has no failover that is not settled; what it wrote to shared tables and nobody received is given up with it\n", a.Site)
		return nil
	}
	h, err := client.Handover(cmd.Context(), a.Handover, 0)
	if err != nil {
		return err
	}
	loss := "not known"
	if f := h.Failover; f != nil && f.LossMS >= 0 {
		loss = fmt.Sprintf("%.1f s of its time", float64(f.LossMS)/1000)
	}
	fmt.Fprintf(out, "failover %s: what site %s had acknowledged and no other site has received is given up; estimated then: %s\n", a.Handover, a.Site, loss)
	return nil
}

func (c *cli) reportMember(cmd *cobra.Command, a api.MemberAnswer) error {
	out := cmd.OutOrStdout()
	if c.json {
		return printJSON(out, a)
	}
	for _, step := range a.Steps {
		fmt.Fprintln(out, step)
	}
	switch {
	case a.DryRun && a.From != "":
		fmt.Fprintf(out, "ready: site %s would be filled from site %s\n", a.Site, a.From)
	case a.DryRun && len(a.Steps) == 0:
		fmt.Fprintf(out, "ready: to %s site %s\n", a.Do, a.Site)
	case a.Left != "":
		fmt.Fprintf(out, "left to do: %s\n", a.Left)
	}
	return nil
}
