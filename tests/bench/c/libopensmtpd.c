/*
 * An empty filter on libopensmtpd. It answers proceed. Its arguments are
 * registrations such as report|smtp-in|link-connect.
 */
#include <sys/types.h>
#include <sys/socket.h>
#include <err.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <opensmtpd.h>

#define CTX struct osmtpd_ctx *c
#define SS struct sockaddr_storage *
typedef const char *str;
typedef enum osmtpd_status st;

static void connect_(CTX, str a, SS b) { (void)a; (void)b; osmtpd_filter_proceed(c); }
static void name_(CTX, str a) { (void)a; osmtpd_filter_proceed(c); }
static void plain_(CTX) { osmtpd_filter_proceed(c); }
static void r_connect(CTX, str a, st b, SS d, SS e) { (void)c; (void)a; (void)b; (void)d; (void)e; }
static void r_plain(CTX) { (void)c; }
static void r_text(CTX, str a) { (void)c; (void)a; }
static void r_id(CTX, uint32_t i) { (void)c; (void)i; }
static void r_addr(CTX, uint32_t i, str a, st b) { (void)c; (void)i; (void)a; (void)b; }
static void r_envelope(CTX, uint32_t i, uint64_t e) { (void)c; (void)i; (void)e; }
static void r_data(CTX, uint32_t i, st b) { (void)c; (void)i; (void)b; }
static void r_commit(CTX, uint32_t i, size_t n) { (void)c; (void)i; (void)n; }

int
main(int argc, char **argv)
{
	int	 i;

	for (i = 1; i < argc; i++) {
		const char *a = argv[i];
#define IS(s) (strcmp(a, s) == 0)
		if (IS("filter|smtp-in|connect")) osmtpd_register_filter_connect(connect_);
		else if (IS("filter|smtp-in|helo")) osmtpd_register_filter_helo(name_);
		else if (IS("filter|smtp-in|ehlo")) osmtpd_register_filter_ehlo(name_);
		else if (IS("filter|smtp-in|mail-from")) osmtpd_register_filter_mailfrom(name_);
		else if (IS("filter|smtp-in|rcpt-to")) osmtpd_register_filter_rcptto(name_);
		else if (IS("filter|smtp-in|data")) osmtpd_register_filter_data(plain_);
		else if (IS("filter|smtp-in|rset")) osmtpd_register_filter_rset(plain_);
		else if (IS("filter|smtp-in|quit")) osmtpd_register_filter_quit(plain_);
		else if (IS("filter|smtp-in|noop")) osmtpd_register_filter_noop(plain_);
		else if (IS("filter|smtp-in|commit")) osmtpd_register_filter_commit(plain_);
		else if (IS("report|smtp-in|link-connect")) osmtpd_register_report_connect(1, r_connect);
		else if (IS("report|smtp-in|link-disconnect")) osmtpd_register_report_disconnect(1, r_plain);
		else if (IS("report|smtp-in|link-identify")) osmtpd_register_report_identify(1, r_text);
		else if (IS("report|smtp-in|link-tls")) osmtpd_register_report_tls(1, r_text);
		else if (IS("report|smtp-in|tx-begin")) osmtpd_register_report_begin(1, r_id);
		else if (IS("report|smtp-in|tx-mail")) osmtpd_register_report_mail(1, r_addr);
		else if (IS("report|smtp-in|tx-rcpt")) osmtpd_register_report_rcpt(1, r_addr);
		else if (IS("report|smtp-in|tx-envelope")) osmtpd_register_report_envelope(1, r_envelope);
		else if (IS("report|smtp-in|tx-data")) osmtpd_register_report_data(1, r_data);
		else if (IS("report|smtp-in|tx-commit")) osmtpd_register_report_commit(1, r_commit);
		else if (IS("report|smtp-in|tx-rollback")) osmtpd_register_report_rollback(1, r_id);
		else if (IS("report|smtp-in|protocol-client")) osmtpd_register_report_client(1, r_text);
		else if (IS("report|smtp-in|protocol-server")) osmtpd_register_report_server(1, r_text);
		else if (IS("report|smtp-in|filter-response")) osmtpd_register_report_response(1, r_text);
		else if (IS("report|smtp-in|timeout")) osmtpd_register_report_timeout(1, r_plain);
		else if (IS("report|smtp-in|link-auth")) continue; /* it knows no such event */
		else errx(1, "cannot register %s", a);
	}
	osmtpd_run();
	return 0;
}
