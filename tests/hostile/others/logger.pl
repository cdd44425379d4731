#!/usr/bin/perl
# A simple logger: it splits smtpd's lines at each "|", keeps sessions in a
# hash, and writes them to a file for every HELO and RCPT. It registers for no phase.
use strict;
use warnings;

my ($dir) = @ARGV;
my %session;
$| = 1;

while (my $line = <STDIN>) {
	chomp $line;
	if ($line eq 'config|ready') {
		print "register|report|smtp-in|$_\n" for qw(link-connect link-identify link-tls link-auth
		    link-disconnect tx-begin tx-mail tx-rcpt protocol-client protocol-server filter-response timeout);
		print "register|ready\n";
		next;
	}
	my ($stream, $version, $time, $subsystem, $event, $id, @rest) = split /\|/, $line;
	next unless defined $id && $stream eq 'report';
	my $s = $session{$id} //= { session => $id };
	$s->{event} = $event;
	$s->{$event} = [@rest];
	if ($event eq 'protocol-client' && $rest[0] =~ /^(HELO|EHLO|RCPT)/i) {
		my $kind = lc substr $1, 0, 1;
		$kind = 'h' if $kind eq 'e';
		open my $file, '>>', "$dir/$kind.$id" or die "open $dir/$kind.$id: $!";
		print $file "\$VAR1 = {\n", (map { "  '$_' => '" . (ref $s->{$_} ? join("', '", @{ $s->{$_} }) : $s->{$_}) . "',\n" } sort keys %$s), "};\n";
		close $file;
	}
	delete $session{$id} if $event eq 'link-disconnect';
}
