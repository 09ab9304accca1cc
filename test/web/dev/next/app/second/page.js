export default function Second() {
  return <h1>The second page</h1>;
}
