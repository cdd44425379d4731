/*
 * An empty filter on libopensmtpd (Debian package libopensmtpd-dev). It registers
 * for the same events as every filter of that library, and answers proceed.
 *
 *	cc -o empty empty.c -lopensmtpd
 */
#include <sys/types.h>
#include <sys/socket.h>
#include <stdint.h>
#include <time.h>

#include <opensmtpd.h>

static void
connected(struct osmtpd_ctx *ctx, const char *rdns, struct sockaddr_storage *src)
{
	osmtpd_filter_proceed(ctx);
}

static void
asked(struct osmtpd_ctx *ctx, const char *arg)
{
	osmtpd_filter_proceed(ctx);
}

static void
link_connect(struct osmtpd_ctx *ctx, const char *rdns, enum osmtpd_status fcrdns,
    struct sockaddr_storage *src, struct sockaddr_storage *dst)
{
}

static void
text(struct osmtpd_ctx *ctx, const char *line)
{
}

static void
plain(struct osmtpd_ctx *ctx)
{
}

static void
begin(struct osmtpd_ctx *ctx, uint32_t msgid)
{
}

static void
address(struct osmtpd_ctx *ctx, uint32_t msgid, const char *who, enum osmtpd_status status)
{
}

int
main(void)
{
	osmtpd_register_filter_connect(connected);
	osmtpd_register_filter_helo(asked);
	osmtpd_register_filter_ehlo(asked);
	osmtpd_register_filter_mailfrom(asked);
	osmtpd_register_filter_rcptto(asked);
	osmtpd_register_report_connect(1, link_connect);
	osmtpd_register_report_identify(1, text);
	osmtpd_register_report_tls(1, text);
	osmtpd_register_report_disconnect(1, plain);
	osmtpd_register_report_begin(1, begin);
	osmtpd_register_report_mail(1, address);
	osmtpd_register_report_rcpt(1, address);
	osmtpd_register_report_rollback(1, begin);
	osmtpd_register_report_client(1, text);
	osmtpd_register_report_server(1, text);
	osmtpd_register_report_timeout(1, plain);
	osmtpd_run();
	return 0;
}
