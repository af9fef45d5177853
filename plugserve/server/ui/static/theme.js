// Applies the chosen theme before the first paint. Not a module: modules run after it.
try {
  const theme = localStorage.getItem("plugserve.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // without storage the system's theme applies
}
