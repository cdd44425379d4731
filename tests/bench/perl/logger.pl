#!/usr/bin/perl
# A logger designed like a well-known Perl filter. It writes a file for each HELO and
# for each recipient, with the session's state and all its events in Data::Dumper
# format. The first argument is the directory. All other arguments are registrations
# such as report|smtp-in|link-connect.
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
