#!/usr/bin/perl
# One file for each session that greeted, and one for each recipient, written
# when it happens: the session's state and the list of all its events so far, as
# Data::Dumper has them. So does a well-known Perl filter; this is its way of
# working, written anew for the comparison. The first argument is the directory,
# the others what it is to register, in the form of report|smtp-in|link-connect.
use strict;
use warnings;
use Data::Dumper;

$Data::Dumper::Sortkeys = 1;
$| = 1;
my ($dir, @events) = @ARGV;
my %sessions;

sub keep {
	my ($kind, $id, $s) = @_;
	my $name = "$dir/$kind." . substr($id, -12);
	open(my $f, '>', $name) or die "$name: $!";
	print $f Dumper($s->{state}, $s->{events});
	close($f) or die "$name: $!";
}

while (my $line = <STDIN>) {
	chomp $line;
	if ($line =~ /^config\|/) {
		next if $line ne 'config|ready';
		print map({ "register|$_\n" } @events), "register|ready\n";
		next;
	}
	my ($word, $version, $time, $subsystem, $event, $id, @fields) = split /\|/, $line, -1;
	my $s = $sessions{$id} //= { state => { session => $id }, events => [] };
	my $token = $word eq 'filter' ? shift @fields : undef;
	push @{$s->{events}}, { request => $word, version => $version, timestamp => $time,
	    subsystem => $subsystem, event => $event, session => $id, fields => [@fields] };
	$s->{state}{$event} = [@fields];
	keep('h', $id, $s) if $event eq 'link-identify';
	keep('r', $id, $s) if $event eq 'tx-rcpt';
	delete $sessions{$id} if $event eq 'link-disconnect';
	print "filter-result|$id|$token|proceed\n" if defined $token;
}
