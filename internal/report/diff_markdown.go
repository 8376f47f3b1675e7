package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

// Mark is the first line of a difference in Markdown, by which a build finds its own comment again.
const Mark = "<!-- atoll assess diff -->"

// longest is what one piece of foreign text may take of a comment: the comment has room for 65536 characters.
const longest = 160

// quoted is foreign text in Markdown: a code span, in which nothing is markup, HTML, a mention or a reference. What
// could end it, or a cell of a table, is shown by what looks like it.
func quoted(s string) string {
	s = shorten(strings.NewReplacer("`", "ʼ", "|", "¦").Replace(line(s)), longest)
	if s = strings.TrimSpace(s); s == "" {
		return "–"
	}
	return "`" + s + "`"
}

func quotedAll(names []string, n int) string {
	out := make([]string, 0, n)
	for i, name := range names {
		if i == n {
			break
		}
		out = append(out, quoted(name))
	}
	text := strings.Join(out, ", ")
	if len(names) > n {
		text += fmt.Sprintf(" and %d more", len(names)-n)
	}
	return text
}

type markdown struct{ b strings.Builder }

func (m *markdown) line(format string, args ...any) { fmt.Fprintf(&m.b, format+"\n", args...) }

// table begins a table; the first column is text, the others stand right if they are numbers.
func (m *markdown) table(title string, columns ...string) {
	m.line("\n**%s**\n", title)
	m.line("| %s |", strings.Join(columns, " | "))
	m.line("|%s", strings.Repeat(" --- |", len(columns)))
}

func (m *markdown) row(cells ...string) { m.line("| %s |", strings.Join(cells, " | ")) }

func (m *markdown) more(n int) {
	if n > 0 {
		m.line("\n… and %d more (`--json`)", n)
	}
}

// DiffMarkdown writes a difference as a comment for a pull request. Nothing that a file says becomes markup.
func DiffMarkdown(w io.Writer, d *assess.Difference) error {
	m := &markdown{}
	m.line("%s", Mark)
	m.line("### Assessment: %s → %s\n", quoted(d.Before.File), quoted(d.After.File))
	m.line("%s", d.Text)
	if !d.Same {
		m.things("Added", d.Added)
		m.things("Removed", d.Removed)
		m.verdicts(d)
		m.totals(d)
		m.broken(d)
		m.roadmap(d)
		m.refusals(d)
		m.wants(d)
		m.services(d)
		m.inputs(d)
	}
	_, err := io.WriteString(w, m.b.String())
	return err
}

func (m *markdown) things(word string, list []assess.Thing) {
	if len(list) == 0 {
		return
	}
	var out []string
	for i, x := range list {
		if i == shownChanges {
			out = append(out, fmt.Sprintf("and %d more", len(list)-i))
			break
		}
		out = append(out, x.Kind+" "+quoted(x.Name))
	}
	m.line("\n%s: %s", word, strings.Join(out, ", "))
}

func (m *markdown) verdicts(d *assess.Difference) {
	side := func(s *assess.Stand) string {
		if s == nil {
			return "–"
		}
		return quoted(standing(s, d.Currency))
	}
	title := false
	for _, v := range d.Verdicts {
		if v.Change == assess.Flip {
			continue
		}
		if !title {
			m.table("Verdicts", "service", "", "before", "after")
			title = true
		}
		m.row(quoted(v.Service), changeWords[v.Change][0], side(v.Before), side(v.After))
	}
	flips := flips(d)
	if len(flips) > 0 {
		m.table("The same verdict, at another revenue a minute", "service", "before", "after")
	}
	for i, f := range flips {
		if i == shownFlips {
			m.more(len(flips) - i)
			break
		}
		m.row(quoted(f.service), quoted(f.before), quoted(f.after))
	}
}

func (m *markdown) totals(d *assess.Difference) {
	m.table("Totals", "in "+quoted(d.Currency), "today, before", "after", "change", "proposed, before", "after", "change")
	for _, row := range totalNames {
		now, then := total(d, "today", row.id), total(d, "proposed", row.id)
		m.row(row.name, has(now.Before, now.Unit), has(now.After, now.Unit), by(now), has(then.Before, then.Unit), has(then.After, then.Unit), by(then))
	}
}

func (m *markdown) broken(d *assess.Difference) {
	if len(d.Singles) > 0 {
		m.table("Single points of failure", "", "what", "alone takes down")
	}
	for i, s := range d.Singles {
		if i == shownChanges {
			m.more(len(d.Singles) - i)
			break
		}
		m.row(map[bool]string{true: "new", false: "gone"}[s.New], quoted(s.Event)+" "+quoted(s.Kind), quotedAll(s.Services, 8))
	}
	if !d.Mend.Changed {
		return
	}
	m.table("Mend first", "", "before", "after")
	for i := range max(len(d.Mend.Before), len(d.Mend.After)) {
		cell := func(list []assess.Mend) string {
			if i >= len(list) {
				return "–"
			}
			return quoted(list[i].Event) + " saves " + money(list[i].Saves) + " a year"
		}
		m.row(fmt.Sprint(i+1), cell(d.Mend.Before), cell(d.Mend.After))
	}
}

func (m *markdown) roadmap(d *assess.Difference) {
	if len(d.Roadmap) > 0 {
		m.table("Roadmap", "", "step")
	}
	for _, s := range d.Roadmap {
		m.row(s.Change, quoted(stepLine(s)))
	}
}

func (m *markdown) refusals(d *assess.Difference) {
	groups := alike(d.Refusals)
	if len(groups) > 0 {
		m.table("What speaks against a way", "", "services", "way", "why")
	}
	for i, r := range groups {
		if i == shownChanges {
			m.more(len(groups) - i)
			break
		}
		m.row(map[bool]string{true: "new", false: "gone"}[r.New], quotedAll(r.services, 6), quoted(r.whose()), quoted(r.Refusal.Text))
	}
}

func (m *markdown) wants(d *assess.Difference) {
	if len(d.Wants) > 0 {
		m.table("Objectives", "", "service", "")
	}
	for _, w := range d.Wants {
		m.row(w.Change, quoted(w.Service), wanting(w))
	}
}

func (m *markdown) services(d *assess.Difference) {
	rows := services(d)
	if len(rows) > 0 {
		m.table("Services today, a year", "service", "")
	}
	for i, r := range rows {
		if i == shownChanges {
			m.more(len(rows) - i)
			break
		}
		m.row(quoted(r.service), r.text)
	}
}

func (m *markdown) inputs(d *assess.Difference) {
	written, filled, along := sorted(d)
	if len(d.Inputs) == 0 {
		return
	}
	m.line("\n<details><summary>Inputs that differ (%d)</summary>", len(written)+along)
	if len(written) > 0 {
		m.line("\n| input | line | before | after | |")
		m.line("| --- | --- | --- | --- | --- |")
	}
	for n, i := range written {
		if n == shownInputs {
			m.more(len(written) - n)
			break
		}
		m.row(quoted(i.Path), lines(i), quoted(said(i.Before)), quoted(said(i.After)), surer(i))
	}
	if along > 0 {
		m.line("\n%s with what was added or removed.", plural(along, "line came or went", "lines came or went"))
	}
	if len(filled) > 0 {
		var paths []string
		for _, i := range filled {
			paths = append(paths, i.Path+" "+i.Before.Text+" → "+i.After.Text)
		}
		m.line("\nFilled in, so they follow: %s", quotedAll(paths, 6))
	}
	m.line("\n</details>")
}
