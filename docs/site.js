// The other language of this page, not of the first one: both languages have the same pages.
document.querySelectorAll("a[hreflang]").forEach((link) => {
  const [, page] = location.pathname.match(/\/(?:en|zh)\/(.*)$/) ?? [];
  if (page !== undefined) link.href = link.href.replace(/(\/(?:en|zh)\/).*$/, `$1${page}`);
});
